"""The group's assignment of partitions: as few as possible move, and one that moves is free before another gets it.

Each member says in its join which partitions it has. The leader gives a partition that another member still has to
nobody: its owner learns that it has lost it, goes on serving all others, and gives it up in good order before it joins
again. The leader asks for that second round, which hands the partition over. So a member serves through a rebalance
whatever does not move, and no partition has two owners. The leader of an older release hands over at once; then the
former owner is fenced, as a frozen one is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from faust.assignor import PartitionAssignor
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata

# Members that subscribe to the same topics with so many partitions.
_Group = tuple[frozenset[str], int]


class StayingAssignor(PartitionAssignor):
    """Faust's assignor with a stable balance, and with a second round for partitions that move."""

    withheld = False
    """True on the leader when a partition of the last round waits for its owner to give it up."""

    def __init__(self, app: Any, replicas: int = 0) -> None:
        super().__init__(app, replicas)
        self._claims: Mapping[str, Mapping[str, Collection[int]]] = {}

    @property
    def _metadata(self) -> ClientMetadata:
        """The metadata of this member's next request to join, with the partitions that it has."""
        member: Any = self.app.consumer
        said = super()._metadata
        said.assignment = ClientAssignment(actives=dict(member.claims()), standbys={})
        return said

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        self._claims = {
            member: self._get_client_metadata(metadata).assignment.actives
            for member, metadata in member_metadata.items()
        }
        self.withheld = False
        return super()._perform_assignment(cluster, member_metadata)

    def _global_table_standby_assignments(
        self, assignments: MutableMapping[str, ClientAssignment], partitions_by_topic: Mapping[str, int]
    ) -> Any:
        """Replace the balance of Faust, which moves partitions without need, before it is encoded."""
        for (members, count), topics in _groups(assignments, partitions_by_topic).items():
            claims = {member: _claimed(self._claims.get(member, {}), topics, count) for member in members}
            for member, wanted in balanced(claims, count).items():
                free = wanted - {number for other in members - {member} for number in claims[other]}
                self.withheld = self.withheld or free != wanted
                for topic in topics:
                    assignments[member].actives[topic] = sorted(free)
        return super()._global_table_standby_assignments(assignments, partitions_by_topic)


def _groups(
    assignments: Mapping[str, ClientAssignment], partitions_by_topic: Mapping[str, int]
) -> dict[_Group, list[str]]:
    groups: dict[_Group, list[str]] = {}
    for topic, count in sorted(partitions_by_topic.items()):
        members = frozenset(member for member, assignment in assignments.items() if topic in assignment.actives)
        groups.setdefault((members, count), []).append(topic)
    return groups


def _claimed(claims: Mapping[str, Collection[int]], topics: Collection[str], count: int) -> set[int]:
    """Return the partitions that a member has of any of these topics."""
    return {number for topic in topics for number in claims.get(topic, ()) if number < count}


def balanced(claims: Mapping[str, Collection[int]], count: int) -> dict[str, set[int]]:
    """Return the partitions of each member: their numbers differ by one at most, and as few as possible move."""
    members = sorted(claims, key=lambda member: (-len(claims[member]), member))
    least, more = divmod(count, len(members))
    quota = {member: least + (place < more) for place, member in enumerate(members)}
    left = set(range(count))
    found: dict[str, set[int]] = {}
    for member in members:
        found[member] = set(sorted(left & set(claims[member]))[: quota[member]])
        left -= found[member]
    for member in members:
        taken = sorted(left)[: quota[member] - len(found[member])]
        found[member] |= set(taken)
        left -= set(taken)
    return found
