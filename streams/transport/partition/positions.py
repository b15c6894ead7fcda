"""Positions of a partition: the position row of its changelog, and the offset at which a new owner begins.

Before a new owner folds, it checks that the log is still the one its rows were folded from.
"""

from __future__ import annotations

import zlib

import msgspec

from ports.clock import Clock
from ports.errors import CeremonyError
from ports.log import AgentSpec, LogFailed, LogUnavailable, Record
from streams.transport.partition.backend import Backend, PositionRow, Recovered
from streams.transport.partition.dead_letters import origin

# Format number of the position row's bytes. Release 0.1.0 reads only format 1, and so ends rather than fold a partition
# that this release or a later one has owned.
FORMAT = 2


class _Stored(msgspec.Struct, frozen=True):
    format: int
    next: int
    partitions: int
    timestamp: int
    checksum: int
    fold: int = 0


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Stored)


def checksum(record: Record) -> int:
    """Return the CRC-32 of key and value with their lengths, so that bytes moved from one to the other change it."""
    key, value = record.key or b"", record.value or b""
    return zlib.crc32(value, zlib.crc32(b"%d %d " % (len(key), len(value)) + key))


def encode_position(row: PositionRow) -> bytes:
    return _encoder.encode(_Stored(FORMAT, *row))


def decode_position(raw: bytes) -> PositionRow:
    """Decode a position row. Raises LogFailed for a row of a newer release, and for anything else."""
    try:
        stored = _decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise LogFailed("position_row_unreadable", "the changelog's position row is not one of this engine") from error
    if stored.format > FORMAT:
        raise LogFailed("format_too_new", f"position row format {stored.format}, this release reads up to {FORMAT}")
    return PositionRow(stored.next, stored.partitions, stored.timestamp, stored.checksum, stored.fold)


# ---- where a new owner begins

# Time to read the last folded command again.
COMPARE_SECONDS = 30.0
# Remedy of a partition whose log differs.
RESTORE = "restore the log or rehydrate"


class PartitionNotServed(CeremonyError):
    """A partition must not be served: its log is not the one its rows were folded from."""


def resume_point(spec: AgentSpec, number: int, recovered: Recovered) -> int:
    """Return the offset at which an agent without tables resumes: the committed one, or the log start.

    Raises PartitionNotServed.
    """
    begin = recovered.start if recovered.committed is None else max(recovered.committed, recovered.start)
    _within(spec, number, begin, recovered)
    return begin


def fold_point(spec: AgentSpec, number: int, recovered: Recovered, partitions: int) -> int:
    """Return the offset of the next command to fold; 0 without a position row.

    Raises PartitionNotServed, and LogFailed for another partition count or a newer fold.
    """
    row = recovered.position
    if row is not None and row.fold > spec.fold and not spec.accepts_newer_fold:
        raise LogFailed(
            "fold_too_new",
            f"{spec.topic}[{number}] belongs to fold {row.fold} of a newer release, this release has fold {spec.fold}",
            remedy="upgrade this worker",
        )
    if row is not None and row.partitions != partitions:
        raise LogFailed(
            "partition_count_changed",
            f"{spec.topic} was folded with {row.partitions} partitions and has {partitions} now; keys would change"
            " their owner",
        )
    begin = 0 if row is None else row.next
    _within(spec, number, begin, recovered)
    return begin


def _within(spec: AgentSpec, number: int, begin: int, recovered: Recovered) -> None:
    place = f"{spec.topic}[{number}]: position {begin}, log {recovered.start}..{recovered.end}"
    if begin < recovered.start:
        text = "commands not yet folded were deleted"
        raise PartitionNotServed("position_below_log_start", text, place=place, remedy=RESTORE)
    if begin > recovered.end:
        text = "the log lost records that were folded"
        raise PartitionNotServed("position_beyond_log_end", text, place=place, remedy=RESTORE)


async def last_folded(backend: Backend, row: PositionRow, where: str, clock: Clock) -> Record:
    """Read the last folded command again, which leaves the backend behind it.

    Raises PartitionNotServed when the log has another command there.
    """
    backend.seek(row.next - 1)
    try:
        async with clock.timeout(COMPARE_SECONDS):
            (record,) = await backend.fetch(1)
    except TimeoutError:
        raise LogUnavailable("log_unavailable", f"{where} cannot be read") from None
    if record.offset != row.next - 1 or checksum(record) != row.checksum:
        raise PartitionNotServed(
            "log_differs",
            f"{origin(record)} is not the command that was folded last (position {row.next}): the topic was"
            " replaced or rewound",
            remedy=RESTORE,
        )
    return record
