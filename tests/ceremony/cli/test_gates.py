"""The choice of the gate that a person names."""

from __future__ import annotations

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from ceremony.cli.gates import named_gate

STEP = pb.OpenGate(step_id="agreed", role="PO")
GUARD = pb.OpenGate(guard="agreed", role="DEV")
OTHER = pb.OpenGate(step_id="other", role="DEV")


@pytest.mark.parametrize(
    ("role", "meant"), [(None, STEP), ("PO", STEP), ("DEV", GUARD), ("", STEP), ("QA", STEP)], ids=str
)
def test_of_a_step_and_a_guard_with_one_name_the_one_of_the_role_is_meant_else_the_step(
    role: str | None, meant: pb.OpenGate
) -> None:
    # specification 8.3
    assert named_gate([OTHER, STEP, GUARD], "agreed", role) == meant


def test_a_guard_is_found_alone_once_the_step_of_its_name_is_decided() -> None:
    assert named_gate([OTHER, GUARD], "agreed", "QA") == GUARD
    assert named_gate([OTHER], "agreed", None) is None
