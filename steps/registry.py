"""All step kinds, by the handler that a definition names."""

from __future__ import annotations

from types import MappingProxyType

from steps.aggregation import Aggregation
from steps.deliberation import Deliberation
from steps.human_gate import HumanGate
from steps.publish import Publish
from steps.task_extraction import TaskExtraction
from tables.kinds import Kinds, StepKind

_KINDS: tuple[StepKind, ...] = (Deliberation(), TaskExtraction(), Aggregation(), HumanGate(), Publish())
_REGISTRY: Kinds = MappingProxyType({kind.handler: kind for kind in _KINDS})


def all_kinds() -> Kinds:
    """Registry: handler → kind."""
    return _REGISTRY
