"""Rows in Valkey and Neo4j hold no secret and no raw prompt, wherever the row has them; the row itself keeps them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from msgspec.structs import replace

from steps.secrets.redactor import TextRedactor
from tables.instance import Instance, StepState, StepStatus, encode_instance
from tables.read_model import document_of, neo4j_properties, valkey_json
from tests.bridge.projection.world import row
from tests.steps.secrets.planted import planted

PLANTED = list(planted())
TEXTS = [one.text for one in PLANTED]
PROMPT = "Weigh every risk of the story as a patient architect would do it"
MARKER = f"[redacted:{PLANTED[0].rule}]"


def leaky() -> Instance:
    """A row with all planted secrets in each of its parts that hold texts."""
    texts = "\n".join(TEXTS)
    steps = {
        "gather": StepState(status=StepStatus.COMPLETED, output={"texts": TEXTS, "said": f"they said «{PROMPT}»"}),
        "other": StepState(status=StepStatus.FAILED, error_code="x", error_message=texts),
    }
    return replace(
        row("c1:s1"),
        inputs={"note": TEXTS, TEXTS[0]: 1, "json": json.dumps({"x": TEXTS}), "password": "hunter2!hunter"},
        steps=steps,
        error_message=texts,
        correlation_id=TEXTS[0],
    )


def everything(value: Any) -> str:
    """Return JSON with the JSON in its texts decoded."""
    if isinstance(value, dict):
        return " ".join(f"{everything(key)} {everything(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(everything, value))
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(json.JSONDecodeError):  # a marker begins like a list
            return everything(json.loads(value))
    return str(value)


def test_neither_store_gets_a_secret_or_a_raw_prompt() -> None:
    # specification 27.14
    instance = leaky()
    before = encode_instance(instance)
    document = document_of(instance, TextRedactor().of((PROMPT,)).encoded)
    for stored in (json.loads(valkey_json(document)), neo4j_properties(document)):
        shown = everything(stored)
        assert not [one.rule for one in PLANTED if one.secret in shown]
        assert PROMPT[:40] not in shown
        assert "hunter2" not in shown
        assert "[redacted:raw_prompt]" in shown
    assert encode_instance(instance) == before


def test_the_paths_of_what_was_redacted_stand_beside_it() -> None:
    # specification 25.2, 27.14
    document = document_of(leaky(), TextRedactor().of((PROMPT,)).encoded)
    redacted = json.loads(document.engine)["redacted"]
    assert {"$.correlation_id", "$.inputs.note[0]", "$.inputs.json.x[0]", "$.step_outputs.gather.said"} <= set(redacted)
    assert any(path.startswith(f'$.inputs["We can use {MARKER} for') for path in redacted)
    assert not any(one.secret in path for path in redacted for one in PLANTED)


def test_a_clean_row_stays_as_it_is() -> None:
    document = document_of(row("c1:s1", note="the password is in the vault"), TextRedactor().of((PROMPT,)).encoded)
    assert "redacted" not in json.loads(document.engine)
    assert json.loads(document.inputs)["note"] == "the password is in the vault"
