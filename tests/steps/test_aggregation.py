"""Aggregation: every type, also with sources that do not fit."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from steps.aggregation import Aggregation, AggregationFailed, agent, aggregate
from steps.registry import all_kinds
from tables.kinds import Completed, Failed
from tables.limits import MAX_ROW_BYTES
from tables.work import MOST_STEPS, Work
from tests.steps.fakes import MemoryBatch, agent_ports, body_of, context, request, run, step, wrong

KIND = all_kinds()["aggregation_step"]
TYPES = ("merge", "list", "concat", "object", "deep_merge", "flatten", "unique")


@pytest.mark.parametrize(
    ("aggregation_type", "values", "result"),
    [
        ("merge", {"a": {"x": 1, "y": {"p": 1}}, "b": {"y": {"q": 2}}}, {"x": 1, "y": {"q": 2}}),
        ("merge", {"a": [1, 2]}, [1, 2]),
        ("list", {"a": 1, "b": {"x": None}}, [1, {"x": None}]),
        ("concat", {"a": "un", "b": "", "c": "ique"}, "unique"),
        ("object", {"a": 1, "b.c": [2]}, {"a": 1, "b.c": [2]}),
        (
            "deep_merge",
            {"a": {"y": {"p": 1, "l": [1]}}, "b": {"y": {"q": 2, "l": [2]}}},
            {"y": {"p": 1, "l": [2], "q": 2}},
        ),
        ("deep_merge", {"a": {"y": 1}, "b": {"y": {"z": 1}}, "c": {"y": None}}, {"y": None}),
        ("flatten", {"a": [1, [2]], "b": [], "c": [3]}, [1, [2], 3]),
        (
            "unique",
            {"a": [1, True, {"x": 1, "y": 2}], "b": [{"y": 2, "x": 1}, 1, "1"]},
            [1, True, {"x": 1, "y": 2}, "1"],
        ),
    ],
)
def test_each_type_joins_its_sources(aggregation_type: str, values: dict[str, Any], result: Any) -> None:
    # specification 7.2
    made = aggregate(aggregation_type, list(values), values)
    assert made == result
    assert list(map(type, made)) == list(map(type, result))


def test_sources_are_left_as_they_were() -> None:
    values = {"a": {"y": {"p": 1}}, "b": {"y": {"q": 2}}}
    aggregate("deep_merge", ["a", "b"], values)
    assert values == {"a": {"y": {"p": 1}}, "b": {"y": {"q": 2}}}


def failure(aggregation_type: str, sources: Any, values: dict[str, Any]) -> AggregationFailed:
    with pytest.raises(AggregationFailed) as caught:
        aggregate(aggregation_type, sources, values)
    assert f"`{aggregation_type}`" in caught.value.message
    return caught.value


@pytest.mark.parametrize("aggregation_type", TYPES)
def test_a_missing_source_is_named_with_the_type(aggregation_type: str) -> None:
    # specification 7.3
    error = failure(aggregation_type, ["a", "absent.x"], {"a": {}})
    assert error.code == "source_missing" and "`absent.x`" in error.message


@pytest.mark.parametrize("aggregation_type", TYPES)
def test_an_empty_list_of_sources_has_its_own_code(aggregation_type: str) -> None:
    # specification 7.3
    assert failure(aggregation_type, [], {}).code == "sources_empty"


@pytest.mark.parametrize("aggregation_type", TYPES)
def test_sources_that_are_no_list_have_their_own_code(aggregation_type: str) -> None:
    assert failure(aggregation_type, "a", {"a": {}}).code == "sources_not_list"


@pytest.mark.parametrize(
    ("aggregation_type", "values", "says"),
    [
        ("merge", {"good": {}, "bad": [1]}, "a list; an object is required"),
        ("concat", {"good": "", "bad": 1}, "a number; a string is required"),
        ("deep_merge", {"good": {}, "bad": "x"}, "a string; an object is required"),
        ("deep_merge", {"bad": None}, "null; an object is required"),
        ("flatten", {"good": [], "bad": {}}, "an object; a list is required"),
        ("unique", {"good": [], "bad": True}, "a boolean; a list is required"),
    ],
)
def test_a_source_of_the_wrong_type_is_named_with_the_wanted_type(
    aggregation_type: str, values: dict[str, Any], says: str
) -> None:
    # specification 7.3
    error = failure(aggregation_type, list(values), values)
    assert error.code == "source_wrong_type" and f"`bad` is {says}" in error.message


@pytest.mark.parametrize("aggregation_type", ["list", "object"])
def test_list_and_object_take_every_type(aggregation_type: str) -> None:
    # specification 7.2
    values: dict[str, Any] = {"a": None, "b": 1, "c": "x", "d": [], "e": {}, "f": False, "g": 0.5}
    made = aggregate(aggregation_type, list(values), values)
    assert (made if aggregation_type == "object" else dict(zip(values, made, strict=True))) == values


def test_unknown_types_and_objects_nested_too_deep_are_refused() -> None:
    assert failure("sum", ["a"], {"a": 1}).code == "unknown_aggregation_type"
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"x": deep}
    assert failure("deep_merge", ["a", "b"], {"a": deep, "b": deep}).code == "source_too_deep"


def config(*sources: str, aggregation_type: str = "merge") -> dict[str, Any]:
    return {"sources": list(sources), "aggregation_type": aggregation_type}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "sources:missing"),
        ({"sources": [], "aggregation_type": "merge"}, "sources:too_short"),
        ({"sources": "a", "aggregation_type": "merge"}, "sources:list_type"),
        ({"sources": [" "], "aggregation_type": "merge"}, "sources.0:blank"),
        ({"sources": ["a"], "aggregation_type": "sum"}, "aggregation_type:literal_error"),
        ({"sources": ["a"], "aggregation_type": "merge", "more": 1}, "more:extra_forbidden"),
    ],
)
def test_a_wrong_config_is_found_at_load(given: dict[str, Any], error: str) -> None:
    # specification 7.1
    assert error in wrong("aggregation_step", given)


def test_a_source_may_be_named_twice_and_counts_twice() -> None:
    """The specification requires a non-empty list of names only; the result stays bounded."""
    assert aggregate("concat", ["a", "b", "a"], {"a": "x", "b": "-"}) == "x-x"
    asked = context(step("aggregation_step", config(*["a"] * 9, aggregation_type="list")), inputs={"a": "x" * 256_000})
    refused = Aggregation().request(asked)
    assert isinstance(refused, Failed) and refused.code == "request_too_large"


def test_a_source_names_a_step_first_then_an_input_and_dots_reach_inside() -> None:
    # specification 7.1
    it = step("aggregation_step", config("plan.id", "review", "list.1", "shadow.only"))
    asked = context(
        it,
        inputs={"plan": {"id": 7}, "review": "input", "list": [1, 2], "shadow": {"only": "input"}},
        done={"review": {"x": 1}, "shadow": {"other": 1}},
    )
    assert body_of(KIND, asked)["values"] == {"plan.id": 7, "review": {"x": 1}, "list.1": 2, "shadow.only": "input"}


def test_a_source_missing_at_the_start_of_the_step_fails_it_for_good() -> None:
    # specification 7.3
    it = step("aggregation_step", config("later"))
    verdict = KIND.request(context(it))
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == ("source_missing", False)
    assert "`later`" in verdict.message and "`merge`" in verdict.message


def test_sources_that_are_too_large_together_are_refused() -> None:
    # specification 7.3, 20.1
    it = step("aggregation_step", config(*(f"big.{number}" for number in range(12)), aggregation_type="list"))
    asked = context(it, inputs={"big": ["x" * 200_000] * 12})
    verdict = KIND.request(asked)
    assert isinstance(verdict, Failed) and verdict.code == "request_too_large"


def test_the_output_of_the_agent_is_the_output_of_the_step() -> None:
    it = step("aggregation_step", config("a"))
    assert KIND.completed(context(it), {"x": 1}) == Completed({"x": 1})


async def test_the_agent_answers_a_whole_batch_through_the_batch() -> None:
    def body(aggregation_type: str, values: dict[str, Any]) -> dict[str, Any]:
        return {"aggregation_type": aggregation_type, "sources": list(values), "values": values}

    batch = MemoryBatch(
        request(body("merge", {"a": {"x": 1}, "b": {"y": 2}}), number=1),
        request(body("concat", {"a": 5}), number=2),
        request(body("list", {"a": "x" * 300_000}), number=3),
    )
    await run(agent(agent_ports()), batch)
    good, bad, large = batch.outcomes
    assert (good.outcome, good.attempt, good.effect_id) == ("completed", 2, "c1:s1/1/1@1")
    assert good.output == {
        "sources": ["a", "b"],
        "aggregation_type": "merge",
        "aggregated_result": {"x": 1, "y": 2},
    }
    assert (bad.outcome, bad.error_code, bad.retryable) == ("failed", "source_wrong_type", False)
    assert (large.outcome, large.error_code, large.output, large.retryable) == (
        "failed",
        "output_too_large",
        None,
        True,  # an output too large fails the attempt, a row too large the step (specification 11.13)
    )


async def test_the_kind_returns_at_once_the_result_of_its_agent() -> None:
    # specification 7.4, 11.11
    bodies = [
        {"aggregation_type": "merge", "sources": ["a", "b"], "values": {"a": {"x": 1}, "b": {"y": 2}}},
        {"aggregation_type": "concat", "sources": ["a"], "values": {"a": 7}},
    ]
    batch = MemoryBatch(*(request(body, number=number) for number, body in enumerate(bodies)))
    await run(agent(agent_ports()), batch)
    merged, wrong_type = batch.outcomes
    assert KIND.at_once(bodies[0]) == Completed(merged.output)
    assert KIND.at_once(bodies[1]) == Failed(wrong_type.error_code, wrong_type.error_message, retryable=False)
    assert (merged.outcome, wrong_type.outcome, wrong_type.retryable) == ("completed", "failed", False)


async def test_an_outcome_goes_to_the_commands_partition_of_its_request_with_its_correlation_id() -> None:
    batch = MemoryBatch(request({"aggregation_type": "list", "sources": ["a"], "values": {"a": 1}}))
    await run(agent(agent_ports()), batch)
    (sent,) = batch.sent
    assert (sent.topic, sent.key, sent.partition) == ("x.commands", b"c1:s1", None)
    assert tuple(sent.headers) == (("correlation-id", b"corr-1"),)
    assert batch.outcomes[0].size == len(b'{"sources":["a"],"aggregation_type":"list","aggregated_result":[1]}')


@pytest.mark.parametrize(
    "value",
    [
        0,
        "",
        "\N{GRINNING FACE}" * 20,
        [0] * 200,
        [[], {}],
        {"a": {"b": [1, "c", None]}},
        {"\N{GRINNING FACE}" * 9: 1.5},
    ],
    ids=str,
)
def test_the_size_of_the_row_bounds_the_steps_that_are_measured(value: Any) -> None:
    # specification 20.3
    body = {"aggregation_type": "list", "sources": ["a", "a"], "values": {"a": value}}
    from_row = KIND.steps_at_once(body, len(msgspec.json.encode(value)), MOST_STEPS)
    measured = KIND.steps_at_once(body, MAX_ROW_BYTES, MOST_STEPS)
    assert 0 < measured <= from_row


def test_values_beyond_the_work_that_is_left_are_not_measured_to_their_end() -> None:
    # specification 20.3
    body = {"aggregation_type": "list", "sources": ["a"], "values": {"a": [[n] for n in range(100_000)]}}
    assert 6000 < KIND.steps_at_once(body, MAX_ROW_BYTES, 6000) < KIND.steps_at_once(body, MAX_ROW_BYTES, 10**9)


def test_an_aggregation_that_is_left_to_its_agent_takes_work_for_the_count() -> None:
    work = Work(1000)
    assert not work.takes(1001) and 0 < work.left < 1000
