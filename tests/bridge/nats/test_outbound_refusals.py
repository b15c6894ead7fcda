"""A stream that does not take the message of a publish step: it is named until it does, and the step asks again."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.js.api import DiscardPolicy, StreamConfig

from bridge.nats import outbound as outbound_module
from bridge.nats.connection import NatsConnection
from bridge.nats.outbound import NatsOutbound
from bridge.nats.trouble import MOST_REASONS, Trouble
from ports.errors import Unreachable
from ports.outbound import PublishRefused
from tests.bridge.nats.test_outbound import link, publish, server  # noqa: F401 - fixtures
from tests.bridge.nats.world import CLOCK, client
from tests.services import NatsServer

ORDERS = StreamConfig(name="ORDERS_2", subjects=["orders.>"])
SINCE = r"; since 20\d\d-\d\d-\d\dT[\d:.]+Z, "


@pytest.fixture
async def jetstream(server: NatsServer) -> AsyncIterator[Any]:  # noqa: F811
    async with client(server.url) as other:
        yield other.jetstream()


async def refused(outbound: NatsOutbound, key: str = "one") -> str:
    """The reason for which a message was not taken; the step asks again."""
    with pytest.raises(Unreachable) as error:
        await publish(outbound, "orders.made", key)
    return error.value.reason


async def test_a_full_stream_is_named_until_it_takes_the_messages(jetstream: Any, link: NatsConnection) -> None:  # noqa: F811
    # specification 16.11
    outbound = NatsOutbound(link, CLOCK)
    await jetstream.add_stream(ORDERS.evolve(max_msgs=1, discard=DiscardPolicy.NEW))
    await publish(outbound, "orders.made", "first")
    reason = "stream ORDERS_2 does not take a message: maximum messages exceeded (10077)"
    assert [await refused(outbound, key) for key in ("one", "two", "one")] == [reason] * 3
    assert re.fullmatch(re.escape(reason) + SINCE + "2 messages of publish steps wait", outbound.state)
    await jetstream.update_stream(ORDERS)
    await publish(outbound, "orders.made", "one")
    assert "1 messages of publish steps wait" in outbound.state
    await publish(outbound, "orders.made", "two")
    assert outbound.state == "ok"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"no_ack": True}, "stream ORDERS_2 acknowledges nothing (no_ack)"),
        ({"sealed": True}, "stream ORDERS_2 does not take a message: "),
        ({"max_bytes": 1, "discard": DiscardPolicy.NEW}, "maximum bytes exceeded (10077)"),
        (
            {"max_msgs_per_subject": 1, "discard_new_per_subject": True, "discard": DiscardPolicy.NEW},
            "maximum messages per subject exceeded (10077)",
        ),
    ],
)
async def test_each_way_of_a_stream_to_refuse_is_named(
    jetstream: Any,
    link: NatsConnection,  # noqa: F811
    setting: dict[str, Any],
    reason: str,
) -> None:
    # specification 16.11
    outbound = NatsOutbound(link, CLOCK, timeout_seconds=0.5)
    await jetstream.add_stream(ORDERS)
    await publish(outbound, "orders.made", "first")
    config = (await jetstream.stream_info("ORDERS_2")).config
    await jetstream.update_stream(config.evolve(**setting))
    assert reason in await refused(outbound)
    assert reason in outbound.state and "stream ORDERS_2 " in outbound.state


async def test_a_refusal_for_good_names_the_stream_and_does_not_wait(jetstream: Any, link: NatsConnection) -> None:  # noqa: F811
    outbound = NatsOutbound(link, CLOCK)
    await jetstream.add_stream(ORDERS.evolve(max_msg_size=10))
    with pytest.raises(PublishRefused, match=r"larger than the stream takes \(stream ORDERS_2\)"):
        await publish(outbound, "orders.made")
    assert outbound.state == "ok"


async def test_a_message_waits_while_the_stream_ceremony_cannot_be_made(
    jetstream: Any,
    link: NatsConnection,  # noqa: F811
) -> None:
    """Another stream takes a part of its subjects. Before, the step failed for good with `no_stream`."""
    # specification 16.11
    await jetstream.add_stream(StreamConfig(name="PART", subjects=["ceremony.part.>"]))
    outbound = NatsOutbound(link, CLOCK)
    with pytest.raises(Unreachable, match=r"stream CEREMONY cannot be made: .*\(10065\)"):
        await publish(outbound, "ceremony.story.ready")
    assert "CEREMONY cannot be made" in outbound.state
    await jetstream.delete_stream("PART")
    with pytest.raises(Unreachable):  # this publish makes it
        await publish(outbound, "ceremony.story.ready")
    await publish(outbound, "ceremony.story.ready")
    assert outbound.state == "ok"


async def test_a_message_that_is_not_sent_again_waits_no_more(
    jetstream: Any,
    link: NatsConnection,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its ceremony was cancelled, or its partition has moved to another worker."""
    monkeypatch.setattr(outbound_module, "KEPT_SECONDS", 0.0)
    outbound = NatsOutbound(link, CLOCK)
    await jetstream.add_stream(ORDERS.evolve(max_bytes=1, discard=DiscardPolicy.NEW))
    await refused(outbound)
    assert outbound.state == "ok"


# -- the text


def test_each_reason_has_its_own_number_of_messages() -> None:
    trouble = Trouble(CLOCK, "messages")
    for key, reason in (("a", "full"), ("b", "full"), ("c", "sealed"), ("a", "sealed")):
        trouble.note(key, reason, 1)
    assert re.fullmatch(f"full{SINCE}1 messages wait; sealed{SINCE}2 messages wait", trouble.state)
    for key in "abc":
        trouble.end(key)
    assert trouble.state == "ok"


def test_a_text_names_a_bounded_number_of_reasons() -> None:
    trouble = Trouble(CLOCK, "messages")
    for number in range(MOST_REASONS + 3):
        trouble.note(number, f"reason {number}", 1)
    assert trouble.state.count("wait") == MOST_REASONS
    assert trouble.state.endswith("; and 3 other reasons")
