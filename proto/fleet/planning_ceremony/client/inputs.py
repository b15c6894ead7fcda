"""Puts the inputs of a ceremony into a start request, without rounding any number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from fleet.planning_ceremony.client.errors import PlanningCeremonyError
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

# Above it a double, the only number of a Struct, stands for several whole numbers.
LARGEST_EXACT = 2**53


def add_inputs(request: pb.StartPlanningCeremonyRequest, inputs: Mapping[str, Any]) -> None:
    """Add texts as they are, all else as JSON values. Raises PlanningCeremonyError for a number that would be rounded.

    A whole number beyond 2^53 stays exact inside a list or an object; alone it must be given as text.
    """
    given = {name: _exact(name, value) for name, value in inputs.items()}
    request.inputs.update({name: value for name, value in given.items() if isinstance(value, str)})
    richer = {name: value for name, value in given.items() if not isinstance(value, str)}
    if richer:
        request.inputs_json.update(richer)


def _exact(name: str, value: Any) -> Any:
    """Return a value for a Struct, which holds doubles; JSON text instead where a whole number would be rounded."""
    if not _rounded(value):
        return value
    if isinstance(value, Mapping | Sequence):
        return json.dumps(value)
    message = f"inputs_invalid: {name}: a whole number beyond 2^53 is rounded; give it as text, or inside a list"
    raise PlanningCeremonyError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _rounded(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_rounded, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return any(map(_rounded, value))
    return isinstance(value, int) and abs(value) > LARGEST_EXACT
