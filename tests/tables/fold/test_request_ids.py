"""A request id stands for one operation on one ceremony: the same again is accepted, any other is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tables.fold.decide import Decision
from tables.instance import KEPT_COMMAND_IDS, decode_instance, encode_instance
from tests.tables.fold.test_operations import BODY, TALK
from tests.tables.world import World, definition_of, refusal

ROLES = """
roles:
  - {id: OPERATOR, description: operates, allowed_actions: [pause, resume, cancel, hold, one, late]}
  - {id: WATCHER, description: looks on, allowed_actions: [finish]}
"""
Operation = Callable[..., Decision]
# Operations with the id of an accepted `pause` of petra, which are not the same.
OTHERS: dict[str, Callable[[World], Operation]] = {
    "another operation": lambda world: world.cancel,
    "a resume": lambda world: world.resume,
    "another actor": lambda world: lambda **more: world.pause(actor="paul", **more),
    "another reason": lambda world: lambda **more: world.pause(reason="another", **more),
    "a trigger": lambda world: lambda **more: world.trigger("hold", **more),
    "a retry": lambda world: lambda **more: world.retry("one", **more),
    "a run": lambda world: lambda **more: world.run("late", **more),
    "a decision": lambda world: lambda **more: world.decide("gate", **more),
}


def paused(body: str = BODY, **more: str) -> World:
    world = World(definition_of(body))
    world.start(a=1)
    world.pause(command_id="r-1", **more)
    return world


@pytest.mark.parametrize("name", OTHERS)
def test_a_known_id_with_another_operation_or_other_content_is_refused(name: str) -> None:
    # specification 13.12
    world = paused()
    row = world.row
    assert refusal(OTHERS[name](world)(command_id="r-1")) == "request_id_reused"
    assert world.row is row


def test_the_same_operation_under_its_id_is_accepted_and_changes_nothing() -> None:
    # specification 13.12
    world = paused()
    world.resume()
    again = world.pause(command_id="r-1")
    assert (again.note, again.effects, world.live.status) == ("duplicate", (), "RUNNING")


def test_a_role_that_may_not_is_refused_before_the_id_is_looked_at() -> None:
    """A forbidden cancel under the id of an allowed pause learns nothing, and is not accepted."""
    # specification 13.3, 13.12
    world = paused(BODY + ROLES, role="OPERATOR")
    assert refusal(world.cancel(command_id="r-1", role="WATCHER")) == "role_not_allowed"
    assert refusal(world.cancel(command_id="r-1")) == "role_required"
    assert refusal(world.cancel(command_id="r-1", role="OPERATOR", actor=" ")) == "actor_required"
    assert refusal(world.cancel(command_id="r-1", role="OPERATOR")) == "request_id_reused"


def test_an_id_without_a_digest_counts_as_the_same() -> None:
    """Rows of older releases kept ids alone."""
    # specification 13.12
    world = paused()
    world.row = replace(world.live, command_digests=())
    assert world.cancel(command_id="r-1").note == "duplicate"
    world.resume(command_id="r-2")
    assert world.cancel(command_id="r-1").note == "duplicate"
    assert refusal(world.cancel(command_id="r-2")) == "request_id_reused"


def test_after_64_later_operations_an_id_is_forgotten() -> None:
    # specification 13.12
    world = paused()
    for number in range(KEPT_COMMAND_IDS // 2):
        world.resume()
        if number == KEPT_COMMAND_IDS // 2 - 1:
            assert refusal(world.cancel(command_id="r-1")) == "request_id_reused"
        world.pause()
    assert len(world.live.command_digests) == len(world.live.command_ids) == KEPT_COMMAND_IDS
    world.cancel(command_id="r-1")
    assert world.live.status == "CANCELLED"


def test_an_agents_trigger_among_the_ids_leaves_each_digest_with_its_own() -> None:
    body = TALK.replace("{from: RUN, to: BAD", "{from: RUN, to: RUN").replace("num_agents: 1", "num_agents: 2")
    world = World(definition_of(body.replace("  - {id: BAD, description: b, terminal: true}\n", "")))
    world.start()
    world.result("talk", "agent-dev-001", trigger="bad", command_id="nats/1")
    assert world.live.command_digests == ()
    world.pause(command_id="r-1")
    world.resume(command_id="r-2")
    world.result("talk", "agent-dev-001", trigger="bad", command_id="nats/2")
    assert world.live.command_ids == ("nats/1", "r-1", "r-2", "nats/2")
    assert list(map(bool, world.live.command_digests)) == [True, True, False]
    assert world.pause(command_id="r-1").note == "duplicate"
    assert refusal(world.pause(command_id="r-2")) == "request_id_reused"


def test_a_row_of_the_first_release_is_read_and_written_unchanged() -> None:
    """Fields that it does not have are left out while they are empty."""
    world = paused()
    old = replace(world.live, command_digests=())
    raw = encode_instance(old)
    assert b"command_digests" not in raw and b"asked_triggers" not in raw
    assert encode_instance(decode_instance(raw)) == raw
