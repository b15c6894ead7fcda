"""A start's inputs are converted in pieces of bounded work, between which every other call is served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct, Value

from bridge.clock import HostClock
from bridge.grpc import start_request
from bridge.grpc.start_request import (
    CHARACTERS_PER_PIECE,
    LARGEST_INPUTS_BYTES,
    VALUES_AT_ONCE,
    VALUES_PER_PIECE,
    StartInvalid,
    start_pieces,
)
from streams.turns import Turns
from tables.commands import Start
from tests.bridge.grpc.test_start_request import DEFINITION
from tests.loop_turns import LoopTurns

pytestmark = pytest.mark.asyncio


def struct(**values: Any) -> Struct:
    made = Struct()
    made.update(values)
    return made


async def command(turns: Turns, inputs: Mapping[str, str], rich: Struct) -> Start:
    return await turns.run(
        start_pieces(
            DEFINITION,
            ceremony_id="c1",
            story_id="s1",
            correlation_id="",
            inputs=inputs,
            rich_inputs=rich,
            step_ids=(),
            requested_by="anna",
            command_id="id-1",
        )
    )


async def converted_per_turn(monkeypatch: pytest.MonkeyPatch, rich: Struct, callers: int) -> LoopTurns:
    """Convert the same inputs for several callers at once; the values converted between two turns of the loop."""
    counted, plain = LoopTurns(), start_request._plain

    def counting(value: Any) -> Any:
        counted.work()
        return plain(value)

    monkeypatch.setattr(start_request, "_plain", counting)
    turns = Turns(HostClock())
    await counted.during(*(command(turns, {}, rich) for _ in range(callers)))
    return counted


async def test_eight_large_structs_convert_one_piece_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.20
    counted = await converted_per_turn(monkeypatch, struct(a=[0] * 10_000), callers=8)
    assert counted.all == 8 * 10_001
    assert counted.most <= VALUES_PER_PIECE + 8 * VALUES_AT_ONCE


async def test_a_struct_far_too_large_is_refused_before_it_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.20
    rich = Struct()
    rich.fields["a"].list_value.values.extend([Value(bool_value=True)] * 400_000)
    counted = await converted_per_turn(monkeypatch, rich, callers=1)
    assert counted.all == 1  # the length of the list says enough
    with pytest.raises(StartInvalid, match="inputs_too_large"):
        await command(Turns(HostClock()), {}, rich)


@pytest.mark.parametrize("item", ["[]", "0", '""', "1e5"])
async def test_a_text_that_is_certainly_too_large_is_refused_unparsed(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # specification 14.20
    monkeypatch.setattr(start_request, "_loads", lambda _: pytest.fail("parsed"))
    text = f"[{','.join([item] * (LARGEST_INPUTS_BYTES // len(item)))}]"
    with pytest.raises(StartInvalid, match="inputs_too_large"):
        await command(Turns(HostClock()), {"a": text}, Struct())


async def test_indented_json_is_taken_though_its_text_is_larger_than_the_limit() -> None:
    value = {"items": [[n] for n in range(16_000)]}
    text = json.dumps(value, indent=4)
    assert len(text) > LARGEST_INPUTS_BYTES
    made = await command(Turns(HostClock()), {"a": text}, Struct())
    assert made.inputs["a"] == value


async def test_a_long_text_is_searched_for_brackets_in_pieces() -> None:
    text = "[" + "[]," * 40_000 + "0]"
    pieces = sum(1 for _ in start_request.parse_pieces("a", text))
    assert pieces >= len(text) // (CHARACTERS_PER_PIECE + 10)


async def test_a_text_that_is_no_json_is_never_made_into_values(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 14.20
    monkeypatch.setattr(start_request, "_loads", lambda _: pytest.fail("parsed"))
    text = "[" + "[]," * 80_000 + "x]"
    made = await command(Turns(HostClock()), {"a": text}, Struct())
    assert made.inputs["a"] == text


async def test_the_numbers_of_a_text_with_a_very_long_one_are_checked_in_pieces() -> None:
    text = "[" + "[1]," * 40_000 + '"' + "9" * 309 + '"]'
    pieces = sum(1 for _ in start_request.parse_pieces("a", text))
    assert pieces >= 2 * 40_000 // VALUES_PER_PIECE


async def test_too_many_inputs_are_refused_by_their_number() -> None:
    with pytest.raises(StartInvalid, match="50000 inputs are more than"):
        await command(Turns(HostClock()), {f"n{n}": "" for n in range(50_000)}, Struct())
