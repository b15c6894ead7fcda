"""The answers of the simulated agents: proposals and tasks made of words of the prompt, in the executor's envelope.

A proposal holds single words of the prompt and never a phrase of it, so that no raw prompt is published.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from ceremony.dev.ray_simulation.jobs import Job
from ceremony.dev.ray_simulation.knobs import Fate

PRODUCER = "ray-executor"
SUBJECTS = {
    "backlog_review": "agent.response.completed.backlog-review.role",
    "task_extraction": "agent.response.completed.task-extraction",
    "generic": "agent.response.completed",
}
FAILED_SUBJECT = "agent.response.failed"

# Copies of a proposal of about 200 characters: too large for a row, small enough for NATS.
OVERSIZE_COPIES = 2_000
WORDS_KEPT = 12
WORD = re.compile(r"[A-Za-z][A-Za-z-]{4,18}")
AGENT_ID = re.compile(r"\bagent-[A-Za-z0-9_-]+-\d{3}\b")
SPARE_WORDS = ("interface", "storage", "tests", "rollout", "metrics")

OPENINGS = ("Start with", "Begin by isolating", "Put first", "Split off")
REASONS = ("it carries the most risk", "everything else leans on it", "it can be shown early", "it is cheap to undo")
CHECKS = ("a contract test", "a load test", "a review with the product owner", "a feature flag", "a dashboard")
VERBS = ("Define", "Implement", "Test", "Document", "Migrate", "Measure", "Secure", "Roll out")
ERRORS = (
    ("TimeoutError", "the model gave no answer in time"),
    ("OutOfMemoryError", "the model server had no memory left"),
    ("ValidationError", "the model's answer was not the JSON wanted"),
)

_encode = msgspec.json.Encoder().encode


def words_of(prompt: str) -> tuple[str, ...]:
    """Up to 12 different words of a prompt, in order. Answers are made of them."""
    found = dict.fromkeys(word.lower() for word in WORD.findall(prompt[:4_096]))
    return tuple(found)[:WORDS_KEPT] or SPARE_WORDS


def voices_of(prompt: str) -> int:
    """The number of agents whose deliberations an extraction prompt quotes, at least 1."""
    return max(1, len(set(AGENT_ID.findall(prompt))))


def proposal(job: Job, dice: random.Random) -> str:
    """A few sentences of advice."""
    first, second, third = (dice.choice(job.words) for _ in range(3))
    return (
        f"{dice.choice(OPENINGS)} the {first}: {dice.choice(REASONS)}. "
        f"The {second} follows in a change of its own, guarded by {dice.choice(CHECKS)}. "
        f"As {job.role} I see {dice.randint(1, 4)} open questions about the {third}; "
        f"effort {dice.choice((3, 5, 8, 13))} points, confidence {dice.randint(55, 95)} %."
    )


def tasks(job: Job, dice: random.Random) -> list[dict[str, Any]]:
    """Three to six tasks, each grounded in one or two of the deliberations by index."""
    verbs = dice.sample(VERBS, dice.randint(3, 6))
    return [
        {
            "title": f"{verb} the {(word := dice.choice(job.words))}",
            "description": f"{verb} the {word}, checked by {dice.choice(CHECKS)}.",
            "estimated_hours": float(dice.choice((2, 4, 6, 8, 16))),
            "deliberation_indices": sorted(dice.sample(range(job.voices), min(job.voices, dice.randint(1, 2)))),
            "priority": priority,
        }
        for priority, verb in enumerate(verbs, start=1)
    ]


def message(job: Job, agent_id: str, fate: Fate, dice: random.Random, now: float, took: float) -> tuple[str, bytes]:
    """Subject and envelope of one agent's answer; `now` in seconds since the epoch, `took` in seconds.

    As with the real executor, the correlation id is random, and all agents of a deliberation share one idempotency key.
    """
    stamp, kind = iso(now), fate.kind
    if kind == "failed":
        subject, payload = FAILED_SUBJECT, failed_payload(job, agent_id, dice, stamp, took)
    elif job.kind == "task_extraction":
        subject, payload = SUBJECTS[job.kind], extraction_payload(job, dice, stamp, took)
    else:
        subject, payload = SUBJECTS[job.kind], completed_payload(job, agent_id, dice, stamp, took)
        if fate.oversize:
            payload = {**payload, "proposal": payload["proposal"] * OVERSIZE_COPIES}
    envelope = {
        "event_type": "agent.response.failed" if kind == "failed" else "agent.response.completed",
        "payload": payload,
        "idempotency_key": f"agent-response:{job.task_id}",
        "correlation_id": hex_id(dice),
        "timestamp": stamp,
        "producer": PRODUCER,
        "metadata": {},
    }
    return subject, _encode(envelope)


def completed_payload(job: Job, agent_id: str, dice: random.Random, stamp: str, took: float) -> Mapping[str, Any]:
    """The generic payload of an agent that has a proposal."""
    return {**_generic(job, agent_id, stamp, took), "status": "completed", "proposal": proposal(job, dice)}


def failed_payload(job: Job, agent_id: str, dice: random.Random, stamp: str, took: float) -> Mapping[str, Any]:
    """The generic payload of an agent that failed."""
    error_type, error = dice.choice(ERRORS)
    return {**_generic(job, agent_id, stamp, took), "status": "failed", "error": error, "error_type": error_type}


def extraction_payload(job: Job, dice: random.Random, stamp: str, took: float) -> Mapping[str, Any]:
    """The payload of an extraction that has tasks."""
    return {
        "task_id": job.task_id,
        "story_id": job.constraints.get("story_id", ""),
        "ceremony_id": job.constraints["metadata"].get("ceremony_id", ""),
        "tasks": tasks(job, dice),
        "model": job.model,
        "timestamp": stamp,
        "duration_ms": int(took * 1_000),
        "validated_at": stamp,
    }


def _generic(job: Job, agent_id: str, stamp: str, took: float) -> dict[str, Any]:
    return {
        "task_id": job.task_id,
        "agent_id": agent_id,
        "role": job.role,
        "duration_ms": int(took * 1_000),
        "timestamp": stamp,
        "model": job.model,
        "num_agents": len(job.agent_ids),
        "constraints": job.constraints,
    }


def iso(seconds: float) -> str:
    """ISO-8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def hex_id(dice: random.Random) -> str:
    """32 hexadecimal digits."""
    return f"{dice.getrandbits(128):032x}"
