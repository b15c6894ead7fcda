"""Fetch requests and their answers, a partition at a time: aiokafka packs and unpacks each of their fields by itself.

Fetches have no sessions with aiokafka: each names every partition that is read, and is answered for every one.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v11, FetchResponse_v11

_REQUEST = struct.Struct(">iiiibiii")
"""Replica, waiting time, least and most bytes, isolation level, session, its epoch, number of topics."""
_WANTED = struct.Struct(">iiqqi")
"""Partition, leader epoch, offset, log start, most bytes."""
_ANSWER = struct.Struct(">ihii")
"""Throttle time, error, session, number of topics."""
_FOUND = struct.Struct(">ihqqqi")
"""Partition, error, highwater, last stable offset, log start, number of aborted transactions."""
_REPLICA_AND_SIZE = struct.Struct(">ii")
_ABORTED = struct.Struct(">qq")
_SHORT, _INT = struct.Struct(">h"), struct.Struct(">i")
_NONE = -1
"""For a number: not known. For a length: there is none."""


class Fetch(FetchRequest):  # type: ignore[misc]
    """A fetch that is packed quickly where the broker speaks version 11, which is the last that aiokafka does."""

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is not FetchRequest_v11:
            return super().build(request_struct_class)
        return _Packed(
            _NONE,
            self._max_wait_ms,
            self._min_bytes,
            self._max_bytes,
            self._isolation_level,
            0,
            _NONE,
            self._topics,
            [],
            self._rack_id,
        )


def packed(request: FetchRequest) -> Fetch:
    """The same fetch."""
    return Fetch(
        request._max_wait_ms,
        request._min_bytes,
        request._max_bytes,
        request._isolation_level,
        request._topics,
        request._rack_id,
    )


class _Answer(FetchResponse_v11):  # type: ignore[misc]
    @classmethod
    def decode(cls, data: BytesIO | bytes) -> _Answer:
        if isinstance(data, bytes):
            data = BytesIO(data)
        found, at = data.getvalue(), data.tell()
        throttle, error, session, count = _ANSWER.unpack_from(found, at)
        at += _ANSWER.size
        topics = []
        for _ in range(count):
            (length,) = _SHORT.unpack_from(found, at)
            at += _SHORT.size
            topic = found[at : at + length].decode()
            at += length
            (some,) = _INT.unpack_from(found, at)
            at += _INT.size
            partitions = []
            for _ in range(some):
                partition, at = _partition(found, at)
                partitions.append(partition)
            topics.append((topic, partitions))
        return cls(throttle, error, session, topics)


def _partition(found: bytes, at: int) -> tuple[tuple[Any, ...], int]:
    """What was found of one partition, and where the next begins. Raises ValueError where the answer is cut off."""
    partition, error, highwater, stable, start, count = _FOUND.unpack_from(found, at)
    at += _FOUND.size
    aborted = None
    if count != _NONE:
        end = at + count * _ABORTED.size
        aborted = list(_ABORTED.iter_unpack(found[at:end]))
        at = end
    replica, size = _REPLICA_AND_SIZE.unpack_from(found, at)
    at += _REPLICA_AND_SIZE.size
    records = None
    if size != _NONE:
        records = found[at : at + size]
        if len(records) != size:
            raise ValueError(f"fetch answer cut off: {len(records)} of {size} bytes of partition {partition}")
        at += size
    return (partition, error, highwater, stable, start, aborted, replica, records), at


class _Packed(FetchRequest_v11):  # type: ignore[misc]
    RESPONSE_TYPE = _Answer
    replica_id: int
    max_wait_time: int
    min_bytes: int
    max_bytes: int
    isolation_level: int
    session_id: int
    session_epoch: int
    topics: list[tuple[str, list[tuple[int, int, int]]]]
    """Of each partition its number, the offset, and how many bytes at most."""
    rack_id: str

    def encode(self) -> bytes:
        head = _REQUEST.pack(
            self.replica_id,
            self.max_wait_time,
            self.min_bytes,
            self.max_bytes,
            self.isolation_level,
            self.session_id,
            self.session_epoch,
            len(self.topics),
        )
        parts = [head]
        for topic, partitions in self.topics:
            name = topic.encode()
            parts += [_SHORT.pack(len(name)), name, _INT.pack(len(partitions))]
            parts += [_WANTED.pack(number, _NONE, offset, _NONE, most) for number, offset, most in partitions]
        rack = self.rack_id.encode()
        parts += [_INT.pack(0), _SHORT.pack(len(rack)), rack]  # no topics are forgotten
        return b"".join(parts)
