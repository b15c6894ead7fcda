"""Channels to the other workers: one for each, kept open while it is heard of."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import grpc.aio

SERVICE = "ceremony.Peers"
"""Of the calls that only workers make of each other."""
LARGEST_MESSAGE_BYTES = 8 * 1024 * 1024
OPTIONS = (
    ("grpc.enable_retries", 0),  # the client repeats; a call is never sent twice by us
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
    """Calls by address; requests and responses are bytes."""

    def __init__(self, heard_of: Callable[[], Collection[str]]) -> None:
        """`heard_of`: addresses of the workers there are; channels to others are closed in time."""
        self._heard_of = heard_of
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
        """Close the channels to workers that are not heard of any more."""
        gone = self._channels.keys() - set(self._heard_of())
        for address in gone:
            await self._channels.pop(address).close()

    async def close(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()
