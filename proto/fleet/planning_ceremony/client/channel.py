"""How to connect to the engine: the options of every channel.

gRPC's own retries are off. They count attempts, at most five of them, so a call failed after some four seconds however
long its caller would have waited; the client repeats calls itself, until the caller's deadline.
"""

from __future__ import annotations

import grpc
import grpc.aio

SERVICE = "fleet.planning_ceremony.v1.PlanningCeremonyProcessor"
OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def sync_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel of its own for each caller: gRPC would share the connection of equal ones, and its backoff."""
    options = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def async_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """Call it in the event loop."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=OPTIONS)
