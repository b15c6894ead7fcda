"""Publish: one message of the ceremony's own goes out to NATS, once, under a subject that is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from pydantic import BaseModel

from ports.clock import Clock
from ports.outbound import Outbound, PublishRefused
from steps.agent import AgentFunction, Calls, calling
from steps.config import config_of
from steps.kind import Kind, unknown_steps
from steps.outcome import Outcome, failed
from steps.publish_config import PublishConfig, output_of
from steps.reading import Wiring
from steps.subjects import DEFAULT_ALLOWLIST, own, refusal
from tables.definition import Definition, Step
from tables.definitions.json_schema import check_value
from tables.effects import StepRequested
from tables.kinds import Completed, Failed, StepContext, Verdict
from tables.templates import TemplateFailed, render

PUBLISH_DATA = "publish_data"
"""Input (object) that overlays the payload."""
LARGEST_PAYLOAD = 200 * 1024
"""Bytes of the encoded payload: the output that holds it stays below 256 KiB, the envelope below NATS's 1 MiB."""


def idempotency_key(instance_id: str, step_id: str, visit: int) -> str:
    """Key of the message and its `Nats-Msg-Id`: the same for every attempt of a visit."""
    return f"publish/{instance_id}/{step_id}/{visit}"


class Publish(Kind):
    """The pure kind."""

    handler: str = "publish_step"
    name: str = "publish"
    config: type[BaseModel] = PublishConfig

    def check(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        """The subject is not the engine's, the output exists and is an object, templates name steps that exist."""
        config = config_of(step, PublishConfig)
        if own(config.subject):
            yield "subject", "subject_not_allowed", f"`{config.subject}` is the engine's own; choose another"
        if config.output is not None and config.output not in definition.outputs:
            yield "output", "unknown_output", f"there is no output `{config.output}`; name one of `outputs`"
        output = output_of(step, definition)
        if output is not None and output.type != "object":
            yield "output", "output_not_object", f"output `{output.name}` is {output.type}; a payload is an object"
        yield from unknown_steps("payload_template", config.payload_template, definition)

    def request(self, context: StepContext) -> Any | Failed:
        """Body: `{subject, event_type, payload, idempotency_key}`."""
        config = config_of(context.step, PublishConfig)
        payload = _payload(context, config)
        if isinstance(payload, Failed):
            return payload
        refused = _refused(context, payload)
        if refused is not None:
            return refused
        return {
            "subject": config.subject,
            "event_type": config.event_type,
            "payload": payload,
            "idempotency_key": idempotency_key(context.instance.instance_id, context.step.id, context.visit),
        }

    def completed(self, context: StepContext, output: Any) -> Verdict:
        return Completed(output)


def _payload(context: StepContext, config: PublishConfig) -> dict[str, Any] | Failed:
    """The template with its `${…}` replaced, overlaid by the input `publish_data`, which is no template."""
    inputs = context.instance.inputs
    try:
        payload: dict[str, Any] = render(config.payload_template, inputs, context.output)
    except TemplateFailed as error:
        code = "payload_too_large" if error.code == "template_too_large" else error.code
        return Failed(code, error.message, retryable=False)
    overlay = inputs.get(PUBLISH_DATA, {})
    if not isinstance(overlay, dict):
        return Failed("publish_data_invalid", f"input `{PUBLISH_DATA}` must be an object", retryable=False)
    return payload | overlay


def _refused(context: StepContext, payload: dict[str, Any]) -> Failed | None:
    """Whether the payload may leave: the one place that judges its content."""
    size = len(msgspec.json.encode(payload))
    if size > LARGEST_PAYLOAD:
        message = f"the payload has {size} bytes, at most {LARGEST_PAYLOAD} are allowed"
        return Failed("payload_too_large", message, retryable=False)
    output = output_of(context.step, context.definition)
    wrong = [] if output is None else check_value(payload, output)
    if output is not None and wrong:
        return Failed("payload_invalid", f"output `{output.name}`: {'; '.join(wrong[:10])}", retryable=False)
    return None


class PublishBody(msgspec.Struct, frozen=True, gc=False):
    """Body of the request."""

    subject: str
    event_type: str
    payload: dict[str, Any]
    idempotency_key: str


def agent(
    wiring: Wiring,
    clock: Clock,
    outbound: Outbound,
    *,
    allowlist: Iterable[str] = DEFAULT_ALLOWLIST,
    concurrency: int = 32,
) -> AgentFunction:
    """The agent of `steps.publish`. `allowlist`: patterns of PUBLISH_SUBJECTS."""
    allowed = tuple(allowlist)

    async def perform(request: StepRequested, body: PublishBody) -> Outcome:
        # Judged again: the request may be older than this server's allowlist.
        reason = refusal(body.subject, allowed)
        if reason:
            return failed("subject_not_allowed", reason, retryable=False)
        try:
            done = await outbound.publish(
                body.subject,
                body.event_type,
                body.payload,
                key=body.idempotency_key,
                correlation_id=request.correlation_id,
                causation_id=request.id,
            )
        except PublishRefused as error:
            return failed(error.code, error.message, retryable=False)
        published = {"stream": done.stream, "sequence": done.sequence, "duplicate": done.duplicate}
        return Outcome("completed", msgspec.structs.asdict(body) | {"published": True}, published=published)

    return calling("publish", wiring, PublishBody, Calls(clock, "nats", perform, concurrency))
