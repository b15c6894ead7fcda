"""Searches the index of one partition, with a bounded number of looks at ceremonies.

Filters by changing facts merge the groups that match; a filter by one kept value reads its entries: both give only
matches, and count them exactly. With several kept values, or both kinds of filters, the smallest set of candidates is
walked and each is checked; where it is large, the walk stops after MOST_LOOKS and the count is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import islice

from sortedcontainers import SortedList

from streams.api import Matches, Query
from streams.row_index import HASH_BYTES, TIME_BYTES, PartitionIndex, hash_of, key_of, sort_key
from tables.facts import Kept

# Keys taken, or candidates looked at, before other tasks get the event loop.
LOOKS_PER_TURN = 200
# Candidates of one search of a partition.
MOST_LOOKS = 2_000
# Sort before and behind every key.
_FIRST, _LAST = b"", b"\xff" * (TIME_BYTES + 1)

Pieces = Generator[None, None, Matches]
# Iterates over the candidates from a key on, in order.
Walk = Callable[[bytes], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class _Range:
    """The keys of the times of a query; a page begins at `page`, the count at `low`."""

    low: bytes
    high: bytes
    page: bytes

    @classmethod
    def of(cls, query: Query) -> _Range:
        low = _FIRST if query.created_before is None else key_of(query.created_before - 1, b"")
        high = _LAST if query.created_from is None else key_of(query.created_from - 1, b"")
        if query.after is None:
            return cls(low, high, low)
        minus_created_at, instance_id = query.after
        return cls(low, high, max(low, key_of(-minus_created_at, instance_id.encode()) + b"\0"))

    def count(self, keys: SortedList[bytes], prefix: bytes = b"") -> int:
        if not prefix and self.low == _FIRST and self.high == _LAST:
            return len(keys)
        return max(0, keys.bisect_left(prefix + self.high) - keys.bisect_left(prefix + self.low))

    def __contains__(self, key: bytes) -> bool:
        return self.low <= key < self.high


@dataclass(frozen=True, slots=True)
class _Entries:
    """The ceremonies that keep one value."""

    index: PartitionIndex
    value: bytes
    itself: bytes | None = None
    """The key of the ceremony whose instance id is the value, and its own correlation id: it has no entry."""

    def count(self, keys: _Range) -> int:
        return keys.count(self.index.values, self.value) + (self.itself is not None and self.itself in keys)

    def walk(self, first: bytes, high: bytes) -> Iterator[bytes]:
        entries = self.index.values.irange(self.value + first, self.value + high, (True, False))
        found = (entry[HASH_BYTES:] for entry in entries)
        if self.itself is None or not first <= self.itself < high:
            return found
        return merge(found, [self.itself])

    def __contains__(self, key: bytes) -> bool:
        return key == self.itself or self.value + key in self.index.values


def search(index: PartitionIndex, query: Query, most: int) -> Pieces:
    """Return the first `most` matches of this partition; yields after each piece of work."""
    yield from index.catch_up()
    keys = _Range.of(query)
    values = list(_values(index, query))
    grouped = any((query.state, query.definition, query.status, query.gate_role, query.error_code, query.subject))
    if not values:
        total = sum(keys.count(group.keys) for group in index.matching(query))
        return (yield from _all(index, total, _of_groups(index, query, keys), keys.page, most))
    if len(values) == 1 and not grouped:
        return (yield from _all(index, values[0].count(keys), _of_value(values[0], keys), keys.page, most))
    return (yield from _checked(index, query, keys, values, most, grouped=grouped))


def _values(index: PartitionIndex, query: Query) -> Iterator[_Entries]:
    if query.story:
        yield _Entries(index, hash_of(Kept("story", "", query.story)))
    if query.correlation:
        itself = index.correlated_with_itself(query.correlation)
        yield _Entries(index, hash_of(Kept("correlation", "", query.correlation)), itself)
    for name, value in query.inputs:
        yield _Entries(index, hash_of(Kept("input", name, value)))


def _of_groups(index: PartitionIndex, query: Query, keys: _Range) -> Walk:
    def walk(first: bytes) -> Iterator[bytes]:
        groups = index.matching(query)
        return merge(*(group.keys.irange(first, keys.high, (True, False)) for group in groups))

    return walk


def _of_value(entries: _Entries, keys: _Range) -> Walk:
    return lambda first: entries.walk(first, keys.high)


def _pieces(index: PartitionIndex, walk: Walk, first: bytes, most: int) -> Iterator[list[bytes]]:
    """Iterate over at most `most` candidates in pieces; the index may change between them, so each seeks its place."""
    left = most
    while left > 0:
        wanted = min(left, LOOKS_PER_TURN)
        some = list(islice(walk(first), wanted))
        index.looks += len(some)
        if some:
            yield some
        if len(some) < wanted:
            return
        left -= wanted
        first = some[-1] + b"\0"


def _all(index: PartitionIndex, total: int, walk: Walk, first: bytes, most: int) -> Pieces:
    """Return the first candidates, which all match."""
    found: list[bytes] = []
    for some in _pieces(index, walk, first, most):
        found += some
        yield
    return _matches(max(total, len(found)), found, found[-1] if len(found) >= most else None, exact=True)


def _checked(
    index: PartitionIndex, query: Query, keys: _Range, values: list[_Entries], most: int, *, grouped: bool
) -> Pieces:
    """Return those of the fewest candidates that match all filters."""
    count, number = min((value.count(keys), number) for number, value in enumerate(values))
    fewest: _Entries | None = values[number]
    if grouped and (in_groups := sum(keys.count(group.keys) for group in index.matching(query))) < count:
        fewest, count = None, in_groups
    walk = _of_groups(index, query, keys) if fewest is None else _of_value(fewest, keys)
    others = [value for value in values if value is not fewest]
    by_group = grouped and fewest is not None
    exact = count <= MOST_LOOKS
    found: list[bytes] = []
    total, stopped = 0, None
    for some in _pieces(index, walk, keys.low if exact else keys.page, MOST_LOOKS):
        for key in some:
            if all(key in value for value in others) and (not by_group or index.matches(key, query)):
                total += 1
                if key >= keys.page:
                    found.append(key)
        stopped = some[-1]
        if not exact and len(found) >= most:
            break
        yield
    else:
        if exact:
            stopped = None
    if len(found) > most:
        stopped = found[most - 1]
    return _matches(total, found[:most], stopped, exact=exact)


def _matches(total: int, found: list[bytes], stopped: bytes | None, *, exact: bool) -> Matches:
    return Matches(total, exact, list(map(sort_key, found)), None if stopped is None else sort_key(stopped))
