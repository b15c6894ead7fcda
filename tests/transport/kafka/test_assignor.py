"""The group's balance: even, with as few moves as possible, and no partition has two owners."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata

from bridge.clock import HostClock
from ports.log import TopicSpec
from streams.transport.app import create_app
from streams.transport.faust.assignor import StayingAssignor, balanced

TOPICS = ("t.commands", "t.steps")
Owned = Mapping[str, set[int]]


@pytest.mark.parametrize("seed", range(50))
def test_partitions_are_shared_evenly_and_only_surplus_ones_move(seed: int) -> None:
    luck = random.Random(seed)
    count, members = luck.randrange(1, 20), [f"m{number}" for number in range(luck.randrange(1, 6))]
    claims: dict[str, set[int]] = {member: set() for member in members}
    for number in range(count):
        if luck.random() < 0.8:
            claims[luck.choice(members)].add(number)
    found = balanced(claims, count)
    assert sorted(number for some in found.values() for number in some) == list(range(count))
    sizes = [len(some) for some in found.values()]
    assert max(sizes) - min(sizes) <= 1
    for member, some in claims.items():
        assert len(some & found[member]) in (len(some), len(found[member])), "it keeps all, or as many as it may have"
    assert balanced(found, count) == found


class Group:
    """Members of a group, each with its last assignment, and a leader that assigns."""

    def __init__(self, **owned: set[int]) -> None:
        app = create_app(
            "t", "sqlite:///nowhere", clock=HostClock(), partitions=4, topics=[TopicSpec("t.x", 4)], prefix="t"
        )
        self.leader = StayingAssignor(app)
        self.owned = dict(owned)

    def rebalance(self) -> Owned:
        """Return the partitions that each member gets in one round."""
        cluster = ClusterMetadata()
        cluster.partitions_for_topic = lambda _: set(range(4))
        answers = self.leader._perform_assignment(
            cluster, {name: self._join(some) for name, some in self.owned.items()}
        )
        got: dict[str, set[int]] = {}
        for name, answer in answers.items():
            topics = {topic: set(partitions) for topic, partitions in answer.assignment}
            assert topics[TOPICS[0]] == topics[TOPICS[1]]
            got[name] = topics[TOPICS[0]]
        self.owned = got
        return got

    def _join(self, owned: set[int]) -> Any:
        """Return the metadata of a member that has these partitions of one of the topics."""
        app = self.leader.app
        consumer = SimpleNamespace(claims=lambda: {TOPICS[0]: sorted(owned)})
        member = StayingAssignor(SimpleNamespace(consumer=consumer, tables=app.tables, conf=app.conf))
        return member.metadata(set(TOPICS))


def test_a_partition_that_moves_is_free_for_one_round() -> None:
    # specification 18.17
    group = Group(a={0, 1, 2, 3}, b=set())
    assert group.rebalance() == {"a": {0, 1}, "b": set()}
    assert group.leader.withheld, "the leader asks for a second round"
    assert group.rebalance() == {"a": {0, 1}, "b": {2, 3}}
    assert not group.leader.withheld


def test_partitions_of_a_member_that_has_gone_are_given_at_once() -> None:
    group = Group(a={0, 1})
    assert group.rebalance() == {"a": {0, 1, 2, 3}}
    assert not group.leader.withheld


def test_a_partition_that_two_claim_is_given_to_neither_before_both_have_heard_of_it() -> None:
    group = Group(a={0, 1, 2}, b={2, 3})
    assert 2 not in set().union(*group.rebalance().values())
    assert group.leader.withheld
    assert sorted(number for some in group.rebalance().values() for number in some) == [0, 1, 2, 3]
