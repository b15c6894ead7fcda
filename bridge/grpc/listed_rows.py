"""Encodes the rows of a list as messages: each once per version, and all in pieces of bounded work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import msgspec
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.messages import LARGEST_ANSWER_BYTES
from bridge.grpc.redaction import encoded
from ports.redaction import Redactor
from streams.api import ReadApi
from tables.instance import Instance

# Bytes of the messages that are kept.
KEPT_BYTES = 4 * 1024 * 1024
# Work before other tasks get the event loop, in rows that are encoded anew. A row whose message is kept is a sixteenth
# of the work, and a large one takes its time by its bytes.
WORK_PER_TURN, WORK_IF_KEPT, BYTES_OF_WORK = 2.0, 1 / 16, 8 * 1024
# Bytes of a field around each message.
FRAME_BYTES = 8


class RowsAnswer(msgspec.Struct, array_like=True):
    rows: dict[str, bytes]
    """By id, in the requested order, without rows that no longer exist."""
    complete: bool
    """False when not all rows fitted into one answer."""


class _Encoded(NamedTuple):
    stamp: tuple[int, int, int, str, bool]
    data: bytes


class ListedRows:
    """The messages of rows listed lately, without positions: those rise with each command of the partition.

    They are kept in two generations, as decoded rows are.
    """

    def __init__(
        self, reads: ReadApi, message: Callable[[Instance], Any], redactor: Redactor, kept_bytes: int = KEPT_BYTES
    ) -> None:
        """`message` makes the message of a row, without its position."""
        self._reads = reads
        self._message = message
        self._redactor = redactor
        self._half = kept_bytes // 2
        self._young: dict[str, _Encoded] = {}
        self._old: dict[str, _Encoded] = {}
        self._bytes = 0

    def answer(self, ids: Iterable[str]) -> Generator[None, None, RowsAnswer]:
        """The messages of these rows, as many as fit into an answer but at least one; yields after each piece."""
        found: dict[str, bytes] = {}
        size, work = 0, 0.0
        for instance_id in ids:
            row = self._reads.get(instance_id)
            if row is None:
                continue
            data = self._kept(row)
            more = WORK_IF_KEPT if data is not None else 1 + row.size / BYTES_OF_WORK
            if work and work + more > WORK_PER_TURN:
                work = 0.0
                yield
            work += more
            message = (self._encoded(row) if data is None else data) + self._position(instance_id)
            size += len(message) + FRAME_BYTES
            if found and size > LARGEST_ANSWER_BYTES:
                return RowsAnswer(found, complete=False)
            found[instance_id] = message
        return RowsAnswer(found, complete=True)

    def _kept(self, row: Instance) -> bytes | None:
        name = row.instance_id
        one = self._young.get(name)
        if one is None and (one := self._old.get(name)) is not None:
            self._keep(name, one)
        return one.data if one is not None and one.stamp == self._stamp(row) else None

    def _encoded(self, row: Instance) -> bytes:
        data = encoded(self._message(row), self._redactor)
        self._keep(row.instance_id, _Encoded(self._stamp(row), data))
        return data

    def _stamp(self, row: Instance) -> tuple[int, int, int, str, bool]:
        """Two rows of one id with the same stamp are the same row: one worker folded it, and no substitute is one."""
        return self._reads.losses, row.version, row.updated_at, row.status, row.expired

    def _keep(self, name: str, one: _Encoded) -> None:
        self._young[name] = one
        self._bytes += len(one.data)
        if self._bytes > self._half:
            self._old, self._young, self._bytes = self._young, {}, 0

    def _position(self, instance_id: str) -> bytes:
        """The field of a message that holds its position."""
        partition, offset = self._reads.position_of(instance_id)
        position = pb.LogPosition(partition=partition, offset=offset)
        data: bytes = pb.PlanningCeremonyInstance(position=position).SerializeToString()
        return data
