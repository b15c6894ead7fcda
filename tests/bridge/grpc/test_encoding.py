"""An answer with many messages is the same, whether it is encoded at once or joined from encoded messages."""

from __future__ import annotations

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.clock import HostClock
from bridge.grpc.encoding import SENDING_SECONDS_PER_BYTE, sent_in_turn, unless_bytes, with_repeated
from bridge.grpc.redaction import encoded
from steps.secrets.redactor import TextRedactor
from streams.turns import SHORT_SECONDS, Turns

REDACTOR = TextRedactor()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000, 3_000_000])
def test_messages_of_every_length_are_joined_as_protobuf_encodes_them(size: int) -> None:
    ceremonies = [pb.PlanningCeremonyInstance(instance_id="c1:s1", error_message="x" * size) for _ in range(3)]
    whole = pb.ListPlanningCeremonyInstancesResponse(ceremonies=ceremonies, total_count=7, success=True)
    rest = pb.ListPlanningCeremonyInstancesResponse(total_count=7, success=True)
    joined = with_repeated(rest, "ceremonies", [encoded(one, REDACTOR) for one in ceremonies])
    assert joined == whole.SerializeToString()


def test_an_answer_without_messages_is_that_answer() -> None:
    rest = pb.ListDeadLettersResponse(total_count=3)
    assert with_repeated(rest, "dead_letters", []) == rest.SerializeToString()


@pytest.mark.asyncio
async def test_the_caller_of_a_large_answer_waits_for_the_time_that_sending_takes() -> None:
    # specification 14.20
    clock = HostClock()
    turns = Turns(clock)
    letters = [encoded(pb.DeadLetter(message="x" * 1_000_000), REDACTOR)]
    assert len(letters[0]) * SENDING_SECONDS_PER_BYTE > SHORT_SECONDS
    began = clock.monotonic()
    await sent_in_turn(pb.ListDeadLettersResponse(), "dead_letters", letters, turns)
    assert clock.monotonic() - began >= 1_000_000 * SENDING_SECONDS_PER_BYTE * 0.9


def test_an_encoded_answer_is_sent_as_it_is() -> None:
    serialize = unless_bytes(pb.ListDeadLettersResponse.SerializeToString)
    assert serialize(b"encoded") == b"encoded"
    assert (
        serialize(pb.ListDeadLettersResponse(total_count=1))
        == pb.ListDeadLettersResponse(total_count=1).SerializeToString()
    )
