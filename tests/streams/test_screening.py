"""The payload of a publish step that holds a secret or a raw prompt is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ports.errors import Unreachable
from ports.outbound import PublishRefused
from steps.secrets.redactor import TextRedactor
from streams.api import Unavailable
from streams.screening import LONGEST_PATH, NAMED, ScreenedOutbound
from tests.steps.fakes import RecordingOutbound
from tests.steps.secrets.planted import planted

SECRET = next(planted()).secret
PROMPT = "Weigh every risk of the story as a patient architect would"
KEY = "publish/c1:s1/publish_report/3"


def screened(prompts_of: Callable[[str], tuple[str, ...]] = lambda _: (PROMPT,)) -> tuple[Any, RecordingOutbound]:
    sent = RecordingOutbound()
    return ScreenedOutbound(sent, TextRedactor(), prompts_of), sent


async def publish(outbound: Any, payload: dict[str, Any]) -> Any:
    return await outbound.publish("ceremony.x", "x", payload, key=KEY, correlation_id="c", causation_id="e")


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"a": {"b": [SECRET]}}, "$.a.b[0] (aws_access_key_id)"),
        ({"note": f"they said: {PROMPT}."}, "$.note (raw_prompt)"),
        ({"note": PROMPT.replace(" ", "\n  ")}, "$.note (raw_prompt)"),
        ({SECRET: 1}, '$["[redacted:aws_access_key_id]"] (aws_access_key_id)'),
    ],
)
async def test_a_payload_with_a_secret_or_a_raw_prompt_is_refused(payload: dict[str, Any], named: str) -> None:
    # specification 27.11
    outbound, sent = screened()
    with pytest.raises(PublishRefused) as refused:
        await publish(outbound, payload)
    assert refused.value.code == "payload_rejected"
    assert named in refused.value.message
    assert SECRET not in refused.value.message
    assert sent.messages == []


async def test_a_clean_payload_is_sent_as_it_is() -> None:
    outbound, sent = screened()
    payload = {"note": "the password is in the vault", "prompt": PROMPT[:31]}
    assert (await publish(outbound, payload)).sequence == 7
    assert sent.messages[0]["payload"] is payload


async def test_only_prompts_of_the_own_definition_count() -> None:
    asked = []

    def prompts_of(instance_id: str) -> tuple[str, ...]:
        asked.append(instance_id)
        return ("Another prompt of another definition, long enough to count",)

    outbound, sent = screened(prompts_of)
    await publish(outbound, {"note": PROMPT})
    assert asked == ["c1:s1"]
    assert len(sent.messages) == 1


async def test_a_step_asks_again_while_the_prompts_cannot_be_read() -> None:
    def moving(_: str) -> tuple[str, ...]:
        raise Unavailable("partition 3 is not served: moving")

    outbound, sent = screened(moving)
    with pytest.raises(Unreachable):
        await publish(outbound, {"note": "x"})
    assert sent.messages == []


async def test_the_message_names_some_findings_and_counts_the_others() -> None:
    outbound, _ = screened()
    with pytest.raises(PublishRefused) as refused:
        await publish(outbound, {f"k{number}-{'x' * 500}": SECRET for number in range(40)})
    assert refused.value.message.count("aws_access_key_id") == NAMED
    assert f"and {40 - NAMED} more" in refused.value.message
    assert len(refused.value.message) < (LONGEST_PATH + 40) * NAMED
