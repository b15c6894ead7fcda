"""The facts by which ceremonies are searched."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec.structs import replace

from tables.definitions.loader import load
from tables.errors import DefinitionInvalid, FormatTooNew, Undecodable
from tables.facts import Changing, Kept, RowFacts, SearchedDefinition, changing, decode_facts, kept, searched_text
from tables.instance import Approval, CeremonyStatus, Instance, Phase, StepState, encode_instance
from tests.streams.search_world import DEFINITIONS, KINDS, TEXT, random_row

ALPHA = next(one for one in DEFINITIONS.values() if one.name == "alpha")
SEARCHED = SearchedDefinition.of(ALPHA, KINDS)


def row(**fields: Any) -> Instance:
    given: dict[str, Any] = {"state": "OPEN", "status": CeremonyStatus.RUNNING, "steps": {}, "error_code": ""}
    one = replace(random_row(random.Random(1), 1), definition_name="alpha", definition_hash=ALPHA.hash)
    return replace(one, guard_approvals={}, **{**given, **fields})


def test_the_role_of_an_open_gate_and_of_a_human_guard_are_facts_until_they_are_decided() -> None:
    # specification 14.21
    gate = {"let_in": StepState(phase=Phase.GATE, attempt=1)}
    assert changing(row(steps=gate), SEARCHED).gate_roles == ("CLERK", "GUARD")
    agreed = {"agreed": (Approval("anna", "CLERK", 1),)}
    assert changing(replace(row(steps=gate), guard_approvals=agreed), SEARCHED).gate_roles == ("GUARD",)
    assert changing(row(steps=gate, status=CeremonyStatus.PAUSED), SEARCHED).gate_roles == ("CLERK", "GUARD")
    assert changing(row(steps=gate, status=CeremonyStatus.CANCELLED), SEARCHED).gate_roles == ()
    assert changing(row(steps=gate, state="SENT"), SEARCHED).gate_roles == ()


def test_the_codes_of_the_ceremony_and_of_its_steps_are_facts() -> None:
    # specification 14.21
    steps = {"tell": StepState(error_code="timeout"), "let_in": StepState(error_code="rejected")}
    assert changing(row(steps=steps, error_code="timeout"), SEARCHED).error_codes == ("rejected", "timeout")


def test_the_subject_of_a_publish_step_is_a_fact_from_its_first_attempt_on() -> None:
    # specification 14.21
    assert changing(row(steps={"tell": StepState()}), SEARCHED).subjects == ()
    assert changing(row(steps={"tell": StepState(attempt=1)}), SEARCHED).subjects == ("planning.alpha",)


def test_a_row_whose_definition_cannot_be_read_has_no_gates_and_no_subjects() -> None:
    steps = {"let_in": StepState(phase=Phase.GATE, attempt=1), "tell": StepState(attempt=1, error_code="x")}
    assert changing(row(steps=steps), None) == Changing("alpha", "OPEN", "RUNNING", (), ("x",), ())


def test_story_correlation_and_searchable_inputs_are_kept() -> None:
    # specification 14.21
    one = row(inputs={"team": "red", "size": 7, "notes": "no"}, correlation_id="corr")
    values = [
        ("story", "", one.story_id),
        ("correlation", "", "corr"),
        ("input", "team", "red"),
        ("input", "size", "7"),
    ]
    assert list(kept(one, ALPHA.searchable_inputs)) == [Kept(*value) for value in values]
    plain = replace(one, correlation_id=one.instance_id)
    assert list(kept(plain, ())) == [Kept("story", "", one.story_id)]


@pytest.mark.parametrize(
    ("value", "text"),
    [("red", "red"), ("", ""), (7, "7"), (1.5, "1.5"), (True, "true"), (None, "null"), ([1], None), ({"a": 1}, None)],
)
def test_an_input_is_searched_by_its_text_or_its_json(value: Any, text: str | None) -> None:
    # specification 14.21
    assert searched_text(value) == text


@pytest.mark.parametrize("seed", range(8))
def test_the_facts_of_an_encoded_row_are_those_of_the_row(seed: int) -> None:
    draw = random.Random(seed)
    for number in range(50):
        one = random_row(draw, number)
        facts = decode_facts(encode_instance(one))
        assert isinstance(facts, RowFacts)
        searched = SearchedDefinition.of(DEFINITIONS[one.definition_hash], KINDS)
        assert changing(facts, searched) == changing(one, searched)
        names = searched.definition.searchable_inputs
        assert list(kept(facts, names)) == list(kept(one, names))


def test_bytes_that_are_no_row_and_rows_of_a_newer_release_are_refused() -> None:
    with pytest.raises(Undecodable):
        decode_facts(b"{}")
    with pytest.raises(FormatTooNew):
        decode_facts(encode_instance(replace(row(), format=99)))


def test_a_searchable_input_that_no_list_declares_is_an_error() -> None:
    # specification 2.19
    text = TEXT.format(name="alpha").replace("searchable: [team, size]", "searchable: [team, sise]")
    with pytest.raises(DefinitionInvalid, match=r"alpha.yaml:5: unknown_input: `searchable` names `sise`.*`size`"):
        load(text, "alpha.yaml", KINDS)
