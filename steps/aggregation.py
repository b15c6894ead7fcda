"""Aggregation: joins values of steps and inputs into one, in the fold or, beyond its bounds, in the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field

from ports.errors import CeremonyError
from steps.agent import AgentFunction, AgentPorts, answering
from steps.config import Config, NonBlankText, config_of
from steps.kind import Kind
from steps.outcome import Outcome, outcome_of
from tables.definition import Step
from tables.kinds import AtOnce, Completed, Failed, Source, StepContext, Verdict
from tables.limits import MAX_OUTPUT_BYTES
from tables.paths import MISSING, dig
from tables.sizes import size_of

AggregationType = Literal["merge", "list", "concat", "object", "deep_merge", "flatten", "unique"]
# Bytes of all sources together, encoded.
LARGEST_REQUEST_BYTES = 2 * 1024 * 1024
# So many sources never exceed the limit: inputs and outputs have 256 KiB each at most.
_UNMEASURED = LARGEST_REQUEST_BYTES // MAX_OUTPUT_BYTES
# Steps of work (tables/work.py) for each value of the sources that is joined in the fold; one does two bytes of text.
_STEPS_PER_VALUE, _BYTES_PER_STEP = 60, 2
# The same from the bytes of the row alone: a value has at least two of them, and the inputs that every ceremony has are
# not counted. Where this bound is small, nothing is measured.
_STEPS_PER_ROW_BYTE, _UNCOUNTED_BYTES, _SMALL_STEPS = 32, 300, 50_000


class AggregationConfig(Config):
    sources: list[NonBlankText] = Field(min_length=1)
    """Names of steps or inputs; dotted paths reach inside."""
    aggregation_type: AggregationType
    """How the sources are joined. `merge`: a single source as it is; several objects into one, where later keys win.
    `deep_merge`: objects, merged at every depth. `list`: the list of all values. `object`: an object from each
    source's name to its value. `concat`: texts, one behind the other. `flatten`: lists, joined into one.
    `unique`: as `flatten`, without repeated items."""


class AggregationFailed(CeremonyError):
    """The sources do not fit the type of aggregation. The message names both."""


class Aggregation(Kind):
    """The pure part of the kind."""

    handler: str = "aggregation_step"
    name: str = "aggregation"
    config: type[BaseModel] = AggregationConfig
    fields: tuple[str, ...] = ("sources", "aggregation_type", "aggregated_result")

    def sources(self, step: Step) -> Iterable[Source]:
        return [Source(name, name.partition(".")[0]) for name in config_of(step, AggregationConfig).sources]

    def request(self, context: StepContext) -> Any | Failed:
        """Body: `{aggregation_type, sources: [name], values: {name: value}}`."""
        config = config_of(context.step, AggregationConfig)
        values = {}
        for source in config.sources:
            value = _value_of(context, source)
            if value is MISSING:
                error = _failed("source_missing", config.aggregation_type, _missing(source))
                return Failed(error.code, error.message, retryable=False)
            values[source] = value
        if len(config.sources) > _UNMEASURED and _size(config.sources, values) > LARGEST_REQUEST_BYTES:
            return Failed(
                "request_too_large", f"the sources exceed {LARGEST_REQUEST_BYTES} bytes together", retryable=False
            )
        return {"aggregation_type": config.aggregation_type, "sources": config.sources, "values": values}

    def steps_at_once(self, body: Any, row_size: int, left: int) -> int:
        few = _STEPS_PER_ROW_BYTE * (row_size + _UNCOUNTED_BYTES) * len(body["sources"])
        if few <= _SMALL_STEPS:
            return few
        most_values = left // _STEPS_PER_VALUE
        sizes = {name: size_of(value, most_values) for name, value in body["values"].items()}
        named = [sizes[source] for source in body["sources"]]
        texts = sum(size.text_bytes for size in named) // _BYTES_PER_STEP
        return _STEPS_PER_VALUE * sum(size.values for size in named) + texts

    def at_once(self, body: Any) -> AtOnce | None:
        return _result(body["aggregation_type"], body["sources"], body["values"])

    def completed(self, context: StepContext, output: Any) -> Verdict:
        return Completed(output)


def _size(sources: Sequence[str], values: Mapping[str, Any]) -> int:
    """Return the bytes of all sources together; a source named twice counts twice, as in the result."""
    sizes = {name: len(msgspec.json.encode(value)) for name, value in values.items()}
    return sum(sizes[source] for source in sources)


def aggregate(aggregation_type: str, sources: Any, values: Mapping[str, Any]) -> Any:
    """Join the values of `sources` (names, in order). Raises AggregationFailed."""
    function = _FUNCTIONS.get(aggregation_type)
    if function is None:
        raise _failed("unknown_aggregation_type", aggregation_type, f"is not one of {', '.join(_FUNCTIONS)}")
    if not isinstance(sources, list):
        raise _failed("sources_not_list", aggregation_type, "`sources` must be a list of names")
    if not sources:
        raise _failed("sources_empty", aggregation_type, "`sources` is empty; it must name at least one source")
    for source in sources:
        if source not in values:
            raise _failed("source_missing", aggregation_type, _missing(source))
    return function(aggregation_type, sources, values)


def _failed(code: str, aggregation_type: str, message: str) -> AggregationFailed:
    return AggregationFailed(code, f"aggregation `{aggregation_type}`: {message}")


def output_of(aggregation_type: str, sources: Sequence[str], result: Any) -> dict[str, Any]:
    return {"sources": sources, "aggregation_type": aggregation_type, "aggregated_result": result}


def _value_of(context: StepContext, source: str) -> Any:
    """Return a step's output, else an input."""
    name, _, path = source.partition(".")
    output, inputs = context.output(name), context.instance.inputs
    found = MISSING if output is None else dig(output, path)
    if found is MISSING and name in inputs:
        return dig(inputs[name], path)
    return found


def _missing(source: str) -> str:
    return f"source `{source}` is missing; it must be in the output of a COMPLETED step, or an input"


def _merge(kind: str, sources: list[str], values: Mapping[str, Any]) -> Any:
    if len(sources) == 1:
        return values[sources[0]]
    merged: dict[str, Any] = {}
    for value in _all(dict, kind, sources, values):
        merged.update(value)
    return merged


def _deep_merge(kind: str, sources: list[str], values: Mapping[str, Any]) -> Any:
    merged: dict[str, Any] = {}
    for source, value in zip(sources, _all(dict, kind, sources, values), strict=True):
        try:
            _join(merged, value)
        except RecursionError:
            raise _failed("source_too_deep", kind, f"source `{source}` is nested too deep") from None
    return merged


def _join(into: dict[str, Any], value: Mapping[str, Any]) -> None:
    """Merge an object into another one; of other values the later one wins.

    Objects are copied where they come in, so that each source is walked once, whatever was merged before.
    """
    for key, item in value.items():
        if not isinstance(item, dict):
            into[key] = item
            continue
        if not isinstance(into.get(key), dict):
            into[key] = {}
        _join(into[key], item)


def _list(_kind: str, sources: list[str], values: Mapping[str, Any]) -> Any:
    return [values[source] for source in sources]


def _object(_kind: str, sources: list[str], values: Mapping[str, Any]) -> Any:
    return {source: values[source] for source in sources}


def _concat(kind: str, sources: list[str], values: Mapping[str, Any]) -> Any:
    return "".join(_all(str, kind, sources, values))


def _flatten(kind: str, sources: list[str], values: Mapping[str, Any]) -> Any:
    return [item for value in _all(list, kind, sources, values) for item in value]


def _unique(kind: str, sources: list[str], values: Mapping[str, Any]) -> Any:
    """Keep the first of equal items: those with the same JSON, in any order of keys."""
    seen: dict[bytes, Any] = {}
    for item in _flatten(kind, sources, values):
        seen.setdefault(msgspec.json.encode(item, order="sorted"), item)
    return list(seen.values())


def _all(wanted: type, kind: str, sources: list[str], values: Mapping[str, Any]) -> list[Any]:
    """Return the values; each must have the wanted type."""
    for source in sources:
        found = type(values[source])
        if found is not wanted:
            raise _failed(
                "source_wrong_type", kind, f"source `{source}` is {_NAMES[found]}; {_NAMES[wanted]} is required"
            )
    return [values[source] for source in sources]


_NAMES: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_FUNCTIONS: Mapping[str, Callable[[str, list[str], Mapping[str, Any]], Any]] = {
    "merge": _merge,
    "list": _list,
    "concat": _concat,
    "object": _object,
    "deep_merge": _deep_merge,
    "flatten": _flatten,
    "unique": _unique,
}


class AggregationBody(msgspec.Struct, frozen=True, gc=False):
    """Body of the request."""

    aggregation_type: str
    sources: Any
    values: dict[str, Any]


def agent(ports: AgentPorts) -> AgentFunction:
    """Return the agent of `steps.aggregation`."""
    return answering("aggregation", ports.wiring, AggregationBody, _answer)


def _answer(body: AggregationBody) -> Outcome:
    return outcome_of(_result(body.aggregation_type, body.sources, body.values))


def _result(aggregation_type: str, sources: Any, values: Mapping[str, Any]) -> AtOnce:
    try:
        result = aggregate(aggregation_type, sources, values)
    except AggregationFailed as error:
        return Failed(error.code, error.message, retryable=False)
    return Completed(output_of(aggregation_type, sources, result))
