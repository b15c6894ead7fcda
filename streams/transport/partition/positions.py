"""The position row: its bytes in a changelog, and the checksum that tells whether the log is still the same."""

from __future__ import annotations

import zlib

import msgspec

from ports.log import LogFailed, PositionRow, Record

FORMAT = 1
"""Format number of the position row's bytes."""


class _Stored(msgspec.Struct, frozen=True):
    format: int
    next: int
    partitions: int
    timestamp: int
    checksum: int


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Stored)


def checksum(record: Record) -> int:
    """CRC-32 over key and value, each with its length before it, so that bytes cannot move from one to the other."""
    key, value = record.key or b"", record.value or b""
    return zlib.crc32(value, zlib.crc32(b"%d %d " % (len(key), len(value)) + key))


def encode_position(row: PositionRow) -> bytes:
    return _encoder.encode(_Stored(FORMAT, *row))


def decode_position(raw: bytes) -> PositionRow:
    """Raises LogFailed when a newer release wrote the row, or when it is none."""
    try:
        stored = _decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise LogFailed("position_row_unreadable: the changelog's position row is not one of this engine") from error
    if stored.format > FORMAT:
        raise LogFailed(f"format_too_new: position row format {stored.format}, this release reads up to {FORMAT}")
    return PositionRow(stored.next, stored.partitions, stored.timestamp, stored.checksum)
