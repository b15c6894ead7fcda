"""Sizes are bytes as they are written. A value that does not fit fails its step, or is refused."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from ports.log import LARGEST_RECORD_BYTES
from tables.commands import AgentResult, AnyCommand, Origin
from tables.effects import encode_request
from tables.fold.decide import decide
from tables.instance import encode_instance
from tables.limits import MAX_COUNTED_BYTES, MAX_ROW_BYTES, clip, clip_bytes
from tests.tables.world import ID, KINDS, World, check_size, definition_of, refusal

HEAD = """
inputs: {optional: [big]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
steps:
"""
BIG = "\U0001f600" * 60_000
METADATA = ", ".join(f"k{number}: '${{inputs.big}}'" for number in range(17))
TALK = f"""  - id: talk
    state: RUN
    handler: deliberation_step
    config: {{prompt: p, role: DEV, num_agents: 1, constraints: {{metadata: {{{METADATA}}}}}}}
"""
GATE = "  - {id: gate, state: RUN, handler: human_gate_step, config: {role: PO, message: good, deadline_seconds: 60}}\n"
CONTROL = "\x01" * 3000


def test_a_request_larger_than_a_record_fails_its_step_at_the_start() -> None:
    # specification 20.4
    world = World(definition_of(HEAD + TALK), KINDS)
    world.start(big=BIG)
    assert (world.live.status, world.live.error_code) == ("FAILED", "request_too_large")
    assert world.requests() == []


def test_a_request_larger_than_a_record_fails_its_step_behind_a_gate() -> None:
    world = World(definition_of(HEAD + GATE + TALK), KINDS)
    world.start(big=BIG)
    assert refusal(world.decide("gate", role="PO")) == ""
    assert (world.live.status, world.live.error_code) == ("FAILED", "request_too_large")


def test_a_request_larger_than_a_record_fails_its_step_behind_the_deadline_of_a_gate() -> None:
    lost = """
inputs: {optional: [big]}
states:
  - {id: RUN, description: r, initial: true}
  - {id: LATE, description: l}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, description: f}
  - {from: RUN, to: LATE, trigger: late, description: f, guards: [missed]}
  - {from: LATE, to: DONE, trigger: finish, description: f}
guards:
  missed: {check: "step_status:gate:FAILED"}
steps:
"""
    world = World(definition_of(lost + GATE + TALK.replace("RUN", "LATE")), KINDS)
    world.start(big=BIG)
    world.fire("gate/gate")
    assert (world.live.status, world.live.error_code) == ("FAILED", "request_too_large")


@pytest.mark.parametrize("character", ["x", "\x01", "é", "\U0001f600", '"'])
def test_every_request_that_is_made_fits_a_record(character: str) -> None:
    world = World(definition_of(HEAD + TALK), KINDS)
    for characters in (100, 3_000, 10_000, 14_000, 60_000):
        world.row = None
        world.start(big=character * characters)
    assert all(len(encode_request(request)) < LARGEST_RECORD_BYTES * 3 // 4 for request in world.requests())
    assert world.requests()


def test_failed_answers_leave_a_row_that_can_be_written() -> None:
    """A control character counts one character, and JSON writes six bytes for it."""
    # specification 20.5
    step = "  - {id: talk, state: RUN, handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 999}}\n"
    world = World(definition_of(HEAD + step))
    world.start()
    world.outcome("talk", "submitted", deliberation_id="d")
    for number in range(1, 999):
        more: dict[str, Any] = (
            {"error_code": "boom", "error_message": CONTROL} if number < 400 else {"value": "a proposal"}
        )
        unchecked(world, AgentResult(instance_id=ID, step_id="talk", attempt=1, agent_id=agent(number), **more))
    check_size(world.live)
    assert len(encode_instance(world.live)) <= MAX_ROW_BYTES
    assert world.step("talk").phase == "submitted"
    assert len(world.step("talk").answers) == 998
    world.result("talk", "agent-dev-999", value="x" * 250_000)
    assert (world.live.status, world.live.error_code) == ("FAILED", "output_too_large")


def unchecked(world: World, command: AnyCommand) -> None:
    """Fold a command without the checks, whose cost grows with the row."""
    world.row = decide(world.row, command, Origin(0, 1, world.now), world.definition, world.kinds).row


def agent(number: int) -> str:
    return f"agent-dev-{number:03}"


def full(world: World, free: int) -> None:
    """Fill the row with answers until so many bytes are free."""
    for number in range(1, 9):
        room = MAX_ROW_BYTES - world.live.size - free - 200
        if room > 0:
            world.result("fill", f"agent-dev-00{number}", value="x" * min(room, 250_000))


FILL = (
    "  - {id: fill, state: RUN, after: [], handler: deliberation_step, config: {prompt: p, role: DEV, num_agents: 9}}\n"
)


def filled(gate: str, free: int) -> World:
    world = World(definition_of(HEAD + FILL + gate.replace("state: RUN,", "state: RUN, after: [],")), KINDS)
    world.start()
    world.outcome("fill", "submitted", deliberation_id="d")
    full(world, free)
    return world


@pytest.mark.parametrize("free", [0, 100, 1_000, 3_000, 4_000, 8_000, 20_000])
@pytest.mark.parametrize("comment", ["x" * 2000, CONTROL, ""], ids=["plain", "control", "none"])
@pytest.mark.parametrize("approved", [True, False])
def test_a_gate_of_a_nearly_full_row_can_be_decided(free: int, comment: str, *, approved: bool) -> None:
    world = filled(GATE, free)
    assert MAX_ROW_BYTES - world.live.size < free + 400
    assert refusal(world.decide("gate", approved=approved, role="PO", comment=comment)) == ""
    assert world.step("gate").status == ("COMPLETED" if approved else "FAILED")
    assert world.step("gate").output["comment"] == clip(comment)
    assert world.live.size <= MAX_COUNTED_BYTES


def test_decisions_are_refused_when_the_room_for_texts_is_full() -> None:
    """Nothing of a refused decision is kept, and a shorter one finds room as long as there is any."""
    gates = "".join(
        f"  - {{id: gate{n}, state: RUN, handler: human_gate_step, config: {{role: PO, message: good, quorum: 99}}}}\n"
        for n in range(4)
    )
    world = filled(gates, 100)
    codes = [refusal(world.decide(f"gate{n % 4}", role="PO", actor=f"a{n}", comment=CONTROL)) for n in range(60)]
    assert set(codes) == {"", "row_full"}
    assert codes.index("row_full") >= 20
    before = world.row
    assert refusal(world.decide("gate0", role="PO", actor="late", comment=CONTROL)) == "row_full"
    assert world.row is before
    assert refusal(world.decide("gate3", role="PO", actor="short")) == ""
    world.pause(reason=CONTROL)
    world.resume()
    world.fire("ceremony_max")
    assert world.live.status == "TIMED_OUT"


def test_approvals_of_guards_are_counted_and_refused_when_the_row_is_full() -> None:
    names = [f"g{number}" for number in range(40)]
    guards = "".join(f"  {name}: {{type: human, check: somebody agrees}}\n" for name in names)
    text = HEAD.replace("trigger: finish,", f"trigger: finish, guards: [{', '.join(names)}],")
    world = World(definition_of(text.replace("steps:", f"guards:\n{guards}steps:") + FILL), KINDS)
    world.start()
    world.outcome("fill", "submitted", deliberation_id="d")
    full(world, 0)
    codes = [refusal(world.decide(name, comment=CONTROL)) for name in names]
    assert set(codes) == {"", "row_full"}
    assert world.live.size == MAX_COUNTED_BYTES or world.live.size > MAX_COUNTED_BYTES - 20_000
    approved = [name for name, code in zip(names, codes, strict=True) if not code]
    for name in approved:
        world.decide(name, approved=False)
    assert world.live.approvals_size == 0


def test_a_step_of_a_full_row_can_fail_with_any_text() -> None:
    others = "".join(
        f"  - {{id: s{n}, state: RUN, after: [], handler: deliberation_step,"
        " config: {prompt: p, role: DEV, num_agents: 1}}\n"
        for n in range(60)
    )
    world = World(definition_of(HEAD + FILL + others), KINDS)
    world.start()
    world.outcome("fill", "submitted", deliberation_id="d")
    full(world, 0)
    for number in range(60):
        world.outcome(f"s{number}", "failed", error_code=CONTROL, error_message=CONTROL, retryable=False)
        assert world.step(f"s{number}").error_code
    assert world.live.size <= MAX_COUNTED_BYTES + 60 * 34
    assert len(encode_instance(world.live)) < LARGEST_RECORD_BYTES // 2


def test_a_text_is_cut_to_the_bytes_that_json_writes() -> None:
    rng = Random(7)
    for _ in range(300):
        text = "".join(rng.choice(("a", '"', "\n", "\x01", "é", "\U0001f600")) for _ in range(rng.randrange(60)))
        most = rng.randrange(80)
        cut = clip_bytes(text, most)
        written = len(encode_text(cut))
        assert not cut or written <= most
        assert cut == text or text.startswith(cut[:-1])
        if cut != text and len(cut) > 1:
            longer = text[: len(cut)] + "…"
            assert len(encode_text(longer)) > most


def encode_text(text: str) -> bytes:
    return msgspec.json.encode(text)
