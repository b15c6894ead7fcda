"""Publish: the payload and its checks, the allowed subjects, and sending once."""

from __future__ import annotations

from typing import Any

import pytest

from ports.errors import Unreachable
from ports.outbound import Published, PublishRefused
from ports.provenance import Provenance
from steps.publish import Publish, agent
from tables.definition import Output
from tables.kinds import Completed, Failed
from tests.steps.fakes import (
    MemoryBatch,
    RecordingOutbound,
    agent_ports,
    body_of,
    context,
    definition,
    request,
    run,
    step,
    wrong,
)

KIND = Publish()
BASE = {"subject": "ceremony.backlog.reviewed", "event_type": "backlog.reviewed"}
FLAT = Output("report", "object", {"points": "number", "title": "string"})
KEY = "publish/c1:s1/publish_report/3"


def publishing(config: dict[str, Any] | None = None, name: str = "publish_report") -> Any:
    return step("publish_step", {**BASE, **(config or {})}, name)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"event_type": "e"}, "subject:missing"),
        ({"subject": "a.b"}, "event_type:missing"),
        ({**BASE, "subject": ""}, "subject:subject_malformed"),
        ({**BASE, "subject": "a..b"}, "subject:subject_malformed"),
        ({**BASE, "subject": "a.*"}, "subject:subject_malformed"),
        ({**BASE, "subject": "a.>"}, "subject:subject_malformed"),
        ({**BASE, "subject": "a b"}, "subject:subject_malformed"),
        ({**BASE, "subject": "a.${inputs.x}"}, "subject:subject_malformed"),
        ({**BASE, "event_type": " "}, "event_type:blank"),
        ({**BASE, "payload_template": []}, "payload_template:dict_type"),
        ({**BASE, "payload_template": {"a": float("nan")}}, "payload_template:template_not_json"),
        ({**BASE, "payload_template": {"a": [2**70]}}, "payload_template:template_not_json"),
        ({**BASE, "payload_template": {"a": object()}}, "payload_template:template_not_json"),
        ({**BASE, "payload_template": {"a": {1: "x"}}}, "payload_template:template_not_json"),
        ({**BASE, "output": ""}, "output:blank"),
        ({**BASE, "headers": {}}, "headers:extra_forbidden"),
    ],
)
def test_a_wrong_config_is_found_at_load(config: dict[str, Any], error: str) -> None:
    # specification 9.1
    assert error in wrong("publish_step", config)


def test_a_template_nested_too_deep_is_found_at_load() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    assert wrong("publish_step", {**BASE, "payload_template": {"a": deep}}) == ["payload_template:template_too_deep"]


@pytest.mark.parametrize(
    ("config", "outputs", "codes"),
    [
        ({}, [], []),
        ({"output": "absent"}, [FLAT], ["unknown_output"]),
        ({"output": "items"}, [Output("items", "array")], ["output_not_object"]),
        ({}, [Output("report", "string")], ["output_not_object"]),
        ({"subject": "ceremony.step.executed"}, [], ["subject_not_allowed"]),
        ({"event_type": "ceremony.step.executed"}, [], ["event_type_not_allowed"]),
        ({"event_type": "ceremony.completed"}, [], ["event_type_not_allowed"]),
        ({"event_type": "ceremony.step"}, [], []),
        ({"payload_template": {"a": "${steps.absent.x}"}}, [], ["unknown_step"]),
    ],
)
def test_rules_that_need_the_definition(config: dict[str, Any], outputs: list[Output], codes: list[str]) -> None:
    # specification 4.3, 9.3, 9.5
    it = publishing(config)
    assert [code for _, code, _ in KIND.check(it, definition(it, outputs=outputs))] == codes


def test_the_payload_is_the_template_overlaid_by_publish_data() -> None:
    # specification 9.2
    template = {"points": "${inputs.points}", "title": "About ${inputs.title}", "who": "${steps.gate.decided_by}"}
    it = context(
        publishing({"payload_template": template}),
        inputs={"points": 5, "title": "Login", "publish_data": {"title": "${inputs.points}", "extra": [1]}},
        done={"gate": {"decided_by": "ana"}},
    )
    assert KIND.request(it) == {
        "subject": "ceremony.backlog.reviewed",
        "event_type": "backlog.reviewed",
        "payload": {"points": 5, "title": "${inputs.points}", "who": "ana", "extra": [1]},
        "idempotency_key": KEY,
    }


def test_without_template_and_data_the_payload_is_empty() -> None:
    assert body_of(KIND, context(publishing()))["payload"] == {}


def test_the_key_is_the_same_for_every_attempt_of_a_visit() -> None:
    # specification 9.6
    publication = KIND.publication(publishing(), "c1:s1", 3)
    assert publication.idempotency_key == KEY
    assert body_of(KIND, context(publishing(), attempt=9))["idempotency_key"] == KEY


@pytest.mark.parametrize(
    ("template", "inputs", "outputs", "code", "says"),
    [
        ({"a": "${inputs.absent}"}, {}, [], "template_unresolved", "inputs.absent"),
        ({}, {"publish_data": [1]}, [], "publish_data_invalid", "object"),
        ({"a": "x" * 205_000}, {}, [], "payload_too_large", "bytes"),
        ({"a": ["${inputs.b}"] * 200}, {"b": "x" * 10_000}, [], "payload_too_large", "inputs.b"),
        ({"points": "five", "title": "t"}, {}, [FLAT], "payload_invalid", "points"),
        ({"points": True, "title": "t"}, {}, [FLAT], "payload_invalid", "points"),
        ({"points": 1}, {}, [FLAT], "payload_invalid", "title"),
    ],
)
def test_a_payload_that_must_not_be_sent_fails_the_step_for_good(
    template: dict[str, Any], inputs: dict[str, Any], outputs: list[Output], code: str, says: str
) -> None:
    # specification 4.3, 9.2, 9.3
    verdict = KIND.request(context(publishing({"payload_template": template}), inputs=inputs, outputs=outputs))
    assert isinstance(verdict, Failed)
    assert (verdict.code, verdict.retryable) == (code, False)
    assert says in verdict.message


def test_the_payload_must_fit_the_named_output_or_the_one_of_the_steps_name() -> None:
    # specification 9.3
    def code(name: str, config: dict[str, Any]) -> str:
        found = KIND.request(context(publishing(config, name), outputs=[FLAT]))
        return found.code if isinstance(found, Failed) else ""

    assert code("publish_report", {}) == "payload_invalid"
    assert code("report", {}) == code("publish_other", {}) == ""
    assert code("publish_other", {"output": "report"}) == "payload_invalid"
    assert code("publish_report", {"payload_template": {"points": 1, "title": "t", "more": None}}) == ""


def test_the_output_of_the_agent_completes_the_step_and_a_timeout_fails_it() -> None:
    it = context(publishing())
    late = KIND.timed_out(it, {})
    assert KIND.completed(it, {"published": True}) == Completed({"published": True})
    assert isinstance(late, Failed) and late.code == "timeout"


async def published(outbound: RecordingOutbound, config: dict[str, Any] | None = None, **options: Any) -> Any:
    body = body_of(KIND, context(publishing({"payload_template": {"a": 1}, **(config or {})})))
    batch = MemoryBatch(request(body))
    await run(agent(agent_ports(outbound=outbound, **options)), batch)
    (outcome,) = batch.outcomes
    return outcome


async def test_the_agent_publishes_once_and_reports_stream_and_sequence() -> None:
    # specification 9.10
    outbound = RecordingOutbound(Published("CEREMONY", 41, duplicate=True))
    outcome = await published(outbound)
    assert outcome.outcome == "completed"
    assert outcome.output == {
        "subject": "ceremony.backlog.reviewed",
        "event_type": "backlog.reviewed",
        "payload": {"a": 1},
        "published": True,
        "idempotency_key": KEY,
    }
    assert outcome.published == {"stream": "CEREMONY", "sequence": 41, "duplicate": True}
    assert outbound.messages == [
        {
            "subject": "ceremony.backlog.reviewed",
            "event_type": "backlog.reviewed",
            "payload": {"a": 1},
            "key": KEY,
            "correlation": "corr-1",
            "provenance": Provenance("c1:s1"),  # its request has no headers, as one of release 0.1.0
        }
    ]


@pytest.mark.parametrize("subject", ["orders.created", "ceremony.gate.opened", "ceremony.completed"])
async def test_the_agent_checks_the_subject_again_before_it_publishes(subject: str) -> None:
    # specification 9.4
    outbound = RecordingOutbound()
    outcome = await published(outbound, {"subject": subject})
    assert (outcome.outcome, outcome.error_code, outcome.retryable) == ("failed", "subject_not_allowed", False)
    assert outbound.messages == []


async def test_other_subjects_are_allowed_by_the_servers_list() -> None:
    outcome = await published(RecordingOutbound(), {"subject": "orders.created"}, publish_subjects=("orders.*",))
    assert outcome.outcome == "completed"


async def test_nats_out_of_reach_uses_up_no_attempt_and_its_refusal_fails_the_step() -> None:
    # specification 9.9, 11.8
    away = await published(RecordingOutbound(Unreachable("nats", "no connection")))
    refused = await published(RecordingOutbound(PublishRefused("no_stream", "no stream takes this subject")))
    assert (away.outcome, away.error_code) == ("unreachable", "nats_unreachable")
    assert (refused.outcome, refused.error_code, refused.retryable) == ("failed", "no_stream", False)
