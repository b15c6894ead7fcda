"""The partition of a key, as Kafka's default partitioner has it."""

from __future__ import annotations

from functools import lru_cache

from aiokafka.partitioner import murmur2


@lru_cache(maxsize=4096)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key. Cached, as a start needs it five times and hashing in Python takes 4 µs."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)
