"""The index of one partition's ceremonies, for lists that look at few of them, however many there are.

Ceremonies with the same changing facts form a group: a sorted list of their keys. A group is counted without a look at
its ceremonies, and a list merges the groups that match. A value that a ceremony keeps, such as its story, has an entry
in one sorted list over all of them. A key sorts as a list does: newest first, then by instance id.

Changed rows are only noted, and entered later, many at a time. The index is filled from the rows after a take-over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from sortedcontainers import SortedList

from ports.log import PartitionView
from streams.api import Query, SortKey
from streams.partitions import DefinitionLookup
from streams.topics import CEREMONIES
from tables.facts import Changing, Kept, SearchedDefinition, SearchedRow, changing, decode_facts, kept
from tables.instance import Instance
from tables.kinds import Kinds

# Rows entered before other tasks get the event loop.
ROWS_PER_TURN = 50
# Bytes of the two numbers before an instance id: the hash of a value that is kept, and the time of creation.
HASH_BYTES = TIME_BYTES = 8
_TIMES, _HASHES = 1 << 8 * TIME_BYTES, (1 << 8 * HASH_BYTES) - 1


def key_of(created_at: int, instance_id: bytes) -> bytes:
    """Return the key of a ceremony, which sorts newest first, then by id."""
    return (_TIMES - 1 - created_at).to_bytes(TIME_BYTES, "big") + instance_id


def sort_key(key: bytes) -> SortKey:
    """Return the key as it is merged with those of other partitions."""
    return int.from_bytes(key[:TIME_BYTES], "big") - _TIMES + 1, key[TIME_BYTES:].decode()


def hash_of(value: Kept) -> bytes:
    """Return the prefix of a value's entries. Python's hash has a secret, so that nobody can make two collide."""
    return (hash(value) & _HASHES).to_bytes(HASH_BYTES, "big")


def _keeps_other_values(old: Instance, new: Instance) -> bool:
    """Return whether another ceremony, or the stub of this one, took the place of a row."""
    return (
        new.inputs is not old.inputs
        or new.created_at != old.created_at
        or new.story_id != old.story_id
        or new.correlation_id != old.correlation_id
        or new.definition_hash != old.definition_hash
    )


class Group:
    """Ceremonies with the same changing facts."""

    __slots__ = ("facts", "keys")

    def __init__(self, facts: Changing) -> None:
        self.facts = facts
        self.keys: SortedList[bytes] = SortedList()

    def matches(self, query: Query) -> bool:
        facts = self.facts
        return (
            (not query.definition or facts.definition == query.definition)
            and (not query.state or facts.state == query.state)
            and (not query.status or facts.status == query.status)
            and (not query.gate_role or query.gate_role in facts.gate_roles)
            and (not query.error_code or query.error_code in facts.error_codes)
            and (not query.subject or query.subject in facts.subjects)
        )


class PartitionIndex:
    """The index of one partition. Generators yield after each piece of work; the index may change meanwhile."""

    def __init__(self, view: PartitionView, definition_of: DefinitionLookup, kinds: Kinds) -> None:
        self.view = view
        self.filled = False
        self.looks = 0
        """Ceremonies that searches have looked at."""
        self._definition_of = definition_of
        self._kinds = kinds
        self._definitions: dict[str, SearchedDefinition] = {}
        self._groups: dict[Changing, Group] = {}
        self._group_of: dict[bytes, Group] = {}
        """By instance id."""
        self.values: SortedList[bytes] = SortedList()
        """The hash of a value, then the key of a ceremony that has it."""
        self._changed: set[bytes] = set()
        """Ceremonies to be entered as they are now."""

    def __len__(self) -> int:
        return len(self._group_of)

    # -- upkeep

    def fill(self) -> Iterator[None]:
        """Enter all rows, but those that change meanwhile, which are entered afterwards."""
        rows = self.view.scan(CEREMONIES, decode_facts)
        while some := list(islice(rows, ROWS_PER_TURN)):
            for key, row in some:
                if key not in self._changed and key not in self._group_of:
                    self._enter(key, row)
            yield
        self.filled = True

    def changed(self, rows: Mapping[bytes, Instance | None], before: Mapping[bytes, Instance | None]) -> None:
        """Note rows that became visible, with the rows that they replaced. Called for each batch, so it is short."""
        self._changed.update(rows)
        for key, old in before.items():
            if old is None:
                continue
            new = rows[key]
            if (new is None or _keeps_other_values(old, new)) and self._remove(key, old) and new is not None:
                self._enter(key, new)

    @property
    def behind(self) -> int:
        """The number of changed rows that are not entered yet."""
        return len(self._changed)

    def catch_up(self) -> Iterator[None]:
        """Enter as many rows as have changed now; those that change meanwhile are left to the next time."""
        left = len(self._changed)
        while left > 0 and self._changed:
            keys = [self._changed.pop() for _ in range(min(ROWS_PER_TURN, left, len(self._changed)))]
            left -= len(keys)
            for key, row in self.view.scan(CEREMONIES, decode_facts, keys):
                self._enter(key, row)
            yield

    def _enter(self, key: bytes, row: SearchedRow) -> None:
        searched = self._searched(row)
        facts = changing(row, searched)
        group = self._group_of.get(key)
        if group is not None and group.facts == facts:
            return
        name = key_of(row.created_at, key)
        if group is None:
            for prefix in self._prefixes(row, searched):
                self.values.add(prefix + name)
        else:
            self._leave(group, name)
        self._group_of[key] = group = self._group(facts)
        group.keys.add(name)

    def _remove(self, key: bytes, row: SearchedRow) -> bool:
        """Remove a ceremony with all that it keeps; False if it was not entered yet."""
        group = self._group_of.pop(key, None)
        if group is None:
            return False
        name = key_of(row.created_at, key)
        self._leave(group, name)
        for prefix in self._prefixes(row, self._searched(row)):
            self.values.discard(prefix + name)
        return True

    def _group(self, facts: Changing) -> Group:
        group = self._groups.get(facts)
        if group is None:
            group = self._groups[facts] = Group(facts)
        return group

    def _leave(self, group: Group, name: bytes) -> None:
        group.keys.remove(name)
        if not group.keys:
            self._groups.pop(group.facts, None)

    def _searched(self, row: SearchedRow) -> SearchedDefinition | None:
        found = self._definitions.get(row.definition_hash)
        if found is None and (definition := self._definition_of(self.view, row)) is not None:
            found = self._definitions[row.definition_hash] = SearchedDefinition.of(definition, self._kinds)
        return found

    @staticmethod
    def _prefixes(row: SearchedRow, searched: SearchedDefinition | None) -> list[bytes]:
        names = () if searched is None else searched.definition.searchable_inputs
        return list(map(hash_of, kept(row, names)))

    # -- reading

    def matching(self, query: Query) -> list[Group]:
        """Return the groups whose facts match."""
        return [group for group in self._groups.values() if group.matches(query)]

    def matches(self, key: bytes, query: Query) -> bool:
        """Return whether the facts of one ceremony match."""
        group = self._group_of.get(key[TIME_BYTES:])
        return group is not None and group.matches(query)

    def correlated_with_itself(self, correlation_id: str) -> bytes | None:
        """Return the key of the ceremony of this id if the id is also its correlation id."""
        key = correlation_id.encode(errors="replace")
        if key not in self._group_of:
            return None
        found = [
            key_of(row.created_at, key)
            for _, row in self.view.scan(CEREMONIES, decode_facts, [key])
            if row.correlation_id == row.instance_id
        ]
        return found[0] if found else None
