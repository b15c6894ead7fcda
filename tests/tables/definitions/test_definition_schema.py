"""The published JSON Schema of a definition file: agrees with the loader, and accepts every example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from steps.registry import all_kinds
from tables.definitions.advice import warnings
from tables.definitions.file_format import definition_schema
from tables.definitions.loader import load

SPECS = Path(__file__).parents[3] / "specs"
EXAMPLES = sorted((SPECS / "ceremonies").glob("*.yaml"))
SCHEMA = json.loads((SPECS / "ceremony-definition.schema.json").read_text("utf-8"))


def test_the_published_schema_is_the_generated_one() -> None:
    """Run scripts/schema after a change of the shapes or of a config model."""
    # specification 2.17
    assert definition_schema(all_kinds()) == SCHEMA


def test_the_schema_is_valid_itself() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_every_example_fits_the_schema_and_loads_without_a_warning(file: Path) -> None:
    # specification 2.17
    Draft202012Validator(SCHEMA).validate(yaml.safe_load(file.read_text("utf-8")))
    assert warnings(load(file.read_bytes(), str(file), all_kinds()), all_kinds()) == []


def test_the_examples_show_every_feature() -> None:
    """Together they use every key of a definition, every handler, aggregation and form of guard."""
    text = "\n".join(file.read_text("utf-8") for file in EXAMPLES)
    keys = set()

    def collect(schema: object) -> None:
        if isinstance(schema, dict):
            keys.update(schema.get("properties", {}))
            for part in schema.values():
                collect(part)
        elif isinstance(schema, list):
            for part in schema:
                collect(part)

    collect(SCHEMA)
    keys -= {"timeout"}  # another name of timeout_seconds, for old files
    words = {*all_kinds(), "merge", "list", "concat", "object", "deep_merge", "flatten", "unique"}
    words |= {"all_steps_completed", "step_status:", "threshold:", "cel:", "after: []", "publish_data", "SYSTEM"}
    keys -= {"story_id"}  # of constraints: the story of the ceremony is the default
    assert [word for word in sorted(keys | words) if word not in text] == []


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("merge_chain", {"version": "2"}),
        ("merge_chain", {"extra": 1}),
        ("merge_chain", {"states": [{"id": "low", "description": "x"}]}),
        ("merge_chain", {"retry_policies": {"default": {"max_attempts": 0}}}),
        ("merge_chain", {"guards": {"g": {"type": "other", "check": "x"}}}),
        ("merge_chain", {"timeouts": {"step_max": 0}}),
        (
            "merge_chain",
            {"steps": [{"id": "a", "state": "MERGING", "handler": "aggregation_step", "config": {"sources": []}}]},
        ),
        ("merge_chain", {"steps": [{"id": "a", "state": "MERGING", "handler": "other", "config": {"a": 1}}]}),
    ],
)
def test_the_schema_refuses_files_that_the_loader_refuses(file: str, change: dict[str, object]) -> None:
    # specification 2.2
    content = yaml.safe_load((SPECS / "ceremonies" / f"{file}.yaml").read_text("utf-8")) | change
    assert not Draft202012Validator(SCHEMA).is_valid(content)
