"""The settings of starts that the caller does not wait for, and the sender that both clients make of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import grpc
from fleet.planning_ceremony.client.channel import SERVICE, sync_channel
from fleet.planning_ceremony.client.errors import PlanningCeremonyError, error_of
from fleet.planning_ceremony.client.outbox import LARGEST_BYTES, StartOutbox
from fleet.planning_ceremony.client.starts import Starts
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

METHOD = f"/{SERVICE}/StartPlanningCeremony"

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """Bounds of the starts that a client sends by itself."""

    deadline: float = 60.0
    """Seconds for which a start is repeated, unless its call gives another number; `math.inf` for ever."""
    queue_size: int = 1_000
    """Starts that are pending at a time; a further one is dropped as `full`."""
    queue_bytes: int = 16 * 1024 * 1024
    """Bytes of their requests."""
    outbox: str | os.PathLike[str] | None = None
    """A file that keeps accepted starts until the engine took them; each process needs its own."""
    outbox_bytes: int = LARGEST_BYTES
    """Largest size of that file."""


class HasStarts(Protocol):
    """A client with a sender of starts."""

    _starts: Starts


Client = TypeVar("Client", bound=HasStarts)


def starts_of(address: str, credentials: grpc.ChannelCredentials | None, options: DeliveryOptions) -> Starts:
    """The sender of a client. Raises OutboxError."""
    sender = _Sender(address, credentials)
    outbox = None if options.outbox is None else StartOutbox(options.outbox, options.outbox_bytes)
    return Starts(
        sender.send,
        sender.close,
        queue_size=options.queue_size,
        queue_bytes=options.queue_bytes,
        outbox=outbox,
    )


class _Sender:
    """Sends encoded starts over a channel of its own, which is made when it is needed."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self._address, self._credentials = address, credentials
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._closed = False

    def send(self, request: bytes, timeout: float) -> None:
        """Raises PlanningCeremonyError."""
        try:
            self._call()(request, timeout=timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None
        except ValueError:  # of gRPC: the channel was closed meanwhile
            raise PlanningCeremonyError(grpc.StatusCode.CANCELLED, "the client is closed") from None

    def close(self) -> None:
        """End calls under way."""
        with self._lock:
            self._closed = True
            if self._channel is not None:
                self._channel.close()

    def _call(self) -> grpc.UnaryUnaryMultiCallable[bytes, pb.StartPlanningCeremonyResponse]:
        with self._lock:
            if self._closed:
                raise ValueError
            if self._channel is None:
                self._channel = sync_channel(self._address, self._credentials)
            return self._channel.unary_unary(
                METHOD, request_serializer=None, response_deserializer=pb.StartPlanningCeremonyResponse.FromString
            )


def never_raising(call: Callable[Concatenate[Client, P], bool]) -> Callable[Concatenate[Client, P], bool]:
    """Let a call count its errors instead of raising them, those of its own arguments too."""

    @wraps(call)
    def safe(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            return call(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the caller goes on, whatever happens here
            self._starts.refuse(error)
            return False

    return safe


def never_raising_async(
    call: Callable[Concatenate[Client, P], Coroutine[Any, Any, bool]],
) -> Callable[Concatenate[Client, P], Coroutine[Any, Any, bool]]:
    """Let a call count its errors instead of raising them, those of its own arguments too."""

    @wraps(call)
    async def safe(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            return await call(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the caller goes on, whatever happens here
            self._starts.refuse(error)
            return False

    return safe
