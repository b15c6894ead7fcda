"""The starts of the demo: a mix of definitions, each with plausible inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from tables.definition import Definition

# Gets half of the starts, if the folder has it: it shows most.
MAIN = "backlog_review"

STORIES = (
    ("Sign in with a passkey", "As a customer I want to sign in without a password, so that I cannot lose one."),
    ("Export invoices", "As an accountant I want all invoices of a quarter in one file, so that I can hand them on."),
    ("Search that forgives", "As a visitor I want to find things although I misspell them."),
    ("Dark mode", "As somebody who works at night I want a dark screen."),
    ("Retry a failed payment", "As a customer I want to try another card without filling my basket again."),
    ("Audit log", "As an auditor I want to see who changed what, so that I can trust the rest."),
    ("Faster first page", "As a visitor on a train I want to see something within a second."),
)


@dataclass(frozen=True, slots=True)
class PlannedStart:
    """One ceremony that the demo is going to start."""

    definition: str
    ceremony_id: str
    story_id: str
    inputs: Mapping[str, Any]

    @property
    def instance_id(self) -> str:
        return f"{self.ceremony_id}:{self.story_id}"


def plan(count: int, definitions: Sequence[Definition], run_id: str) -> list[PlannedStart]:
    """`count` starts over these definitions, in turn; MAIN gets half of them. Ids begin with `run_id`."""
    names = {definition.name: definition for definition in definitions}
    others = [name for name in names if name != MAIN]
    order = [word for other in others for word in (MAIN, other)] if MAIN in names and others else list(names)
    return [
        PlannedStart(
            definition=name,
            ceremony_id=f"{run_id}-{number + 1:05d}",
            story_id=f"story-{number % len(STORIES) + 1}",
            inputs=inputs_for(names[name], number),
        )
        for number, name in zip(range(count), cycle(order), strict=False)
    ]


def inputs_for(definition: Definition, number: int) -> dict[str, Any]:
    """The required inputs and the known optional ones. An unknown input gets a text."""
    title, description = STORIES[number % len(STORIES)]
    known: dict[str, Any] = {
        "title": title,
        "description": description,
        # planning: every third is urgent and good enough for the fast track, the others wait for a product owner.
        "score": {"value": round(0.5 + number % 5 / 10, 1)},
        "urgent": "yes" if number % 3 == 0 else "no",
        # refinement
        "draft": {"title": title, "text": description},
        "defaults": {"priority": "medium", "points": 3},
        "labels": ["demo", f"team-{number % 4 + 1}"],
        "more_labels": ["demo", "refined"],
        # merge_chain
        "payload": {"story": title, "number": number},
    }
    own = {"story_id", "ceremony_id"}
    wanted = [name for name in definition.required_inputs if name not in own]
    wanted += [name for name in definition.optional_inputs if name in known]
    return {name: known.get(name, f"{name.replace('_', ' ')}: {title}") for name in wanted}
