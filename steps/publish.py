"""Publish: sends one message to NATS, once per visit, under an allowed subject."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from ports.outbound import PublishRefused
from steps.agent import AgentFunction, AgentPorts, Calls, calling
from steps.config import Config, NonBlankText, config_of
from steps.kind import Kind
from steps.outcome import Outcome, failed
from steps.reading import Asked
from steps.subjects import own, refusal
from tables.definition import Definition, Output, Step
from tables.definitions.output_schemas import check_value, required_fields
from tables.errors import Problem
from tables.kinds import Completed, Failed, Publication, StepContext, Verdict
from tables.templates import TemplateFailed, expressions, render

# Name of the input (an object) that overlays the payload.
PUBLISH_DATA = "publish_data"
# Bytes of the encoded payload: the output that holds it stays below 256 KiB, the envelope below NATS's 1 MiB.
LARGEST_PAYLOAD_BYTES = 200 * 1024
# Prefix of a step's id; the rest of the id names the output that the payload must fit.
OUTPUT_PREFIX = "publish_"


# Tokens of printable ASCII; no wildcards, no braces.
_SUBJECT = re.compile(r"[!-)+-\-/-=?-z|~]+(?:\.[!-)+-\-/-=?-z|~]+)*")


def _subject(text: str) -> str:
    if not _SUBJECT.fullmatch(text):
        raise PydanticCustomError("subject_malformed", "must be a NATS subject: tokens separated by dots, no wildcards")
    return text


def _json(value: Any) -> Any:
    try:
        for _ in expressions(value):
            pass
    except TemplateFailed as error:
        raise PydanticCustomError("template_too_deep", "{message}", {"message": error.message}) from None
    _check_json(value)
    return value


def _check_json(value: Any) -> None:
    """Refuse values that JSON does not have; nesting was bounded before."""
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise PydanticCustomError("template_not_json", "keys must be strings: quote them")
        for item in value.values():
            _check_json(item)
    elif isinstance(value, list):
        for item in value:
            _check_json(item)
    elif not isinstance(value, str | int | float | None) or not _encodable(value):
        raise PydanticCustomError("template_not_json", "every value must be one that JSON has: quote it")


def _encodable(value: Any) -> bool:
    """Return whether every reader of JSON can take the value."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(2**63) <= value < 2**64


class PublishConfig(Config):
    subject: Annotated[str, Field(max_length=256), AfterValidator(_subject)]
    """NATS subject without wildcards; `PUBLISH_SUBJECTS` must allow it."""
    event_type: NonBlankText
    """Type of the message; may not be a name of the engine's own events."""
    payload_template: Annotated[dict[Any, Any], AfterValidator(_json)] = Field(default_factory=dict)
    """String leaves may hold `${inputs.…}` and `${steps.…}`."""
    output: NonBlankText | None = None
    """Name in the definition's `outputs`; default: the step id without `publish_`, where such an output exists."""


class Publish(Kind):
    """The pure part of the kind."""

    handler: str = "publish_step"
    name: str = "publish"
    config: type[BaseModel] = PublishConfig
    reaches_out: bool = True
    fields: tuple[str, ...] = ("subject", "event_type", "payload", "published", "idempotency_key")

    def inputs(self, step: Step) -> Iterable[str]:
        return (PUBLISH_DATA,)

    def templates(self, step: Step) -> Mapping[str, Any]:
        return {"payload_template": config_of(step, PublishConfig).payload_template}

    def publication(self, step: Step, instance_id: str, visit: int) -> Publication:
        config = config_of(step, PublishConfig)
        return Publication(config.subject, config.event_type, f"publish/{instance_id}/{step.id}/{visit}")

    def check(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        """Check that subject and event type are free, the output is an object, and templates name steps that exist."""
        config = config_of(step, PublishConfig)
        if own(config.subject):
            yield "subject", "subject_not_allowed", f"`{config.subject}` belongs to the engine; choose another subject"
        if own(config.event_type):
            message = f"`{config.event_type}` is a name of the engine's own events; choose another"
            yield "event_type", "event_type_not_allowed", message
        if config.output is not None and config.output not in definition.outputs:
            yield "output", "unknown_output", f"there is no output `{config.output}`; name one of `outputs`"
        output = output_of(step, definition)
        if output is not None and output.type != "object":
            yield "output", "output_not_object", f"output `{output.name}` is {output.type}; a payload is an object"
        yield from super().check(step, definition)

    def fills(self, step: Step, definition: Definition) -> Iterable[str]:
        output = output_of(step, definition)
        return () if output is None else (output.name,)

    def advise(self, step: Step, definition: Definition) -> Iterable[tuple[str, str, str]]:
        """Warn of fields that the output requires and the template lacks: then only the input can give them."""
        output = output_of(step, definition)
        if output is None or PUBLISH_DATA in definition.required_inputs:
            return
        template = config_of(step, PublishConfig).payload_template
        for name in required_fields(output):
            if name not in template:
                message = f"output `{output.name}` requires `{name}`, which only the input `{PUBLISH_DATA}` can give"
                yield "payload_template", "output_field_missing", message

    def request(self, context: StepContext) -> Any | Failed:
        """Return the body `{subject, event_type, payload, idempotency_key}`."""
        config = config_of(context.step, PublishConfig)
        payload = _payload(context, config)
        if isinstance(payload, Failed):
            return payload
        refused = _refused(context, payload)
        if refused is not None:
            return refused
        publication = self.publication(context.step, context.instance.instance_id, context.visit)
        return {
            "subject": publication.subject,
            "event_type": publication.event_type,
            "payload": payload,
            "idempotency_key": publication.idempotency_key,
        }

    def completed(self, context: StepContext, output: Any) -> Verdict:
        return Completed(output)


def output_of(step: Step, definition: Definition) -> Output | None:
    """Return the output that the payload must fit, or None."""
    name = config_of(step, PublishConfig).output
    if name is None and step.id.startswith(OUTPUT_PREFIX):
        name = step.id.removeprefix(OUTPUT_PREFIX)
    return None if name is None else definition.outputs.get(name)


def _payload(context: StepContext, config: PublishConfig) -> dict[str, Any] | Failed:
    """Return the rendered template, overlaid by the input `publish_data`, which is no template."""
    inputs = context.instance.inputs
    try:
        payload: dict[str, Any] = render(
            config.payload_template, inputs, context.output, context.definition.optional_inputs
        )
    except TemplateFailed as error:
        code = "payload_too_large" if error.code == "template_too_large" else error.code
        return Failed(code, error.message, retryable=False)
    overlay = inputs.get(PUBLISH_DATA, {})
    if not isinstance(overlay, dict):
        return Failed("publish_data_invalid", f"input `{PUBLISH_DATA}` must be an object", retryable=False)
    return payload | overlay


def _refused(context: StepContext, payload: dict[str, Any]) -> Failed | None:
    """Return why the payload may not be sent, or None."""
    size = len(msgspec.json.encode(payload))
    if size > LARGEST_PAYLOAD_BYTES:
        message = f"the payload has {size} bytes, at most {LARGEST_PAYLOAD_BYTES} are allowed"
        return Failed("payload_too_large", message, retryable=False)
    output = output_of(context.step, context.definition)
    wrong = [] if output is None else check_value(payload, output, context.work)
    if output is not None and wrong:
        return Failed("payload_invalid", f"output `{output.name}`: {'; '.join(wrong[:10])}", retryable=False)
    return None


def subject_problems(definition: Definition, allowlist: Iterable[str], file: str = "") -> list[Problem]:
    """List publish steps whose subject this server does not allow; `file` defaults to `<name>.yaml`."""
    allowed = tuple(allowlist)
    return [
        Problem(file or f"{definition.name}.yaml", step.line, "subject_not_allowed", f"step `{step.id}`: {reason}")
        for step in definition.steps.values()
        if isinstance(step.config, PublishConfig) and (reason := refusal(step.config.subject, allowed))
    ]


class PublishBody(msgspec.Struct, frozen=True, gc=False):
    """Body of the request."""

    subject: str
    event_type: str
    payload: dict[str, Any]
    idempotency_key: str


def agent(ports: AgentPorts) -> AgentFunction:
    """Return the agent of `steps.publish`."""

    async def perform(asked: Asked[PublishBody]) -> Outcome:
        request, body = asked.request, asked.body
        # Checked again: the request may be older than this server's allowlist.
        reason = refusal(body.subject, ports.publish_subjects)
        if reason:
            return failed("subject_not_allowed", reason, retryable=False)
        try:
            done = await ports.outbound.publish(
                body.subject,
                body.event_type,
                body.payload,
                key=body.idempotency_key,
                correlation_id=request.correlation_id,
                causation_id=request.id,
                provenance=asked.provenance,
            )
        except PublishRefused as error:
            return failed(error.code, error.message, retryable=False)
        published = {"stream": done.stream, "sequence": done.sequence, "duplicate": done.duplicate}
        return Outcome("completed", msgspec.structs.asdict(body) | {"published": True}, published=published)

    calls = Calls(ports.clock, "nats", perform, ports.concurrency, spans=ports.spans)
    return calling("publish", ports.wiring, PublishBody, calls)
