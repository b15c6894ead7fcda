"""gRPC channels to the other workers: one each, kept open while the worker sends heartbeats."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import grpc.aio

from ports.clock import Clock

# Service of the calls between workers.
SERVICE = "ceremony.Peers"
# Deadline of the first sign of an answer. A worker sends its metadata before it works, so one that is frozen is known
# long before the deadline of a long answer.
SIGN_SECONDS = 2.8
LARGEST_MESSAGE_BYTES = 8 * 1024 * 1024
OPTIONS = (
    ("grpc.enable_retries", 0),  # the client repeats a call; the worker never sends one twice
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class Peers:
    """Makes calls by address; requests and responses are bytes."""

    def __init__(self, addresses: Callable[[], Collection[str]]) -> None:
        """`addresses` gives those of all live workers; `prune` closes channels to any other."""
        self._addresses = addresses
        self._channels: dict[str, grpc.aio.Channel] = {}

    def unary(self, address: str, method: str) -> Any:
        return self._channel(address).unary_unary(method)

    def stream(self, address: str, method: str) -> Any:
        return self._channel(address).unary_stream(method)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=OPTIONS)
        return channel

    async def prune(self) -> None:
        """Close the channels to workers that no longer send heartbeats."""
        gone = self._channels.keys() - set(self._addresses())
        for address in gone:
            await self._channels.pop(address).close()

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


async def silent(calls: Mapping[str, Any], clock: Clock) -> Collection[str]:
    """Return the addresses, of these calls by address, at which no worker begins to answer in time.

    The calls are streams, also where the other side answers once: a unary call shows the metadata with its answer only.
    """
    until = clock.monotonic() + SIGN_SECONDS
    found = []
    for address, call in calls.items():
        try:
            async with clock.timeout(max(0.0, until - clock.monotonic())):
                await call.initial_metadata()
        except TimeoutError:
            found.append(address)
    return found
