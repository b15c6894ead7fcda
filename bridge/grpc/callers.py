"""Lets each caller have one heavy read at a time; its others wait for it, and nobody else does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import grpc.aio

# Metadata of a forwarded call, with the connection it came from; its receiver answers it or refuses it, and never
# forwards it again.
FORWARDED = "x-ceremony-forwarded"

Context = grpc.aio.ServicerContext
Method = TypeVar("Method", bound=Callable[..., Awaitable[Any]])


class Callers:
    """The callers with a heavy read under way; a caller is a connection, also one to the worker that forwards."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock_of(self, caller: str) -> asyncio.Lock:
        """The caller's lock, which lives as long as somebody holds it or waits for it."""
        lock = self._locks.get(caller)
        if lock is None:
            lock = self._locks[caller] = asyncio.Lock()
        return lock


def one_at_a_time(call: Method) -> Method:
    """Let the wrapped call wait until no other wrapped call of its caller runs; `self.callers` knows them."""

    @wraps(call)
    async def wrapped(self: Any, request: Any, context: Context[Any, Any]) -> Any:
        async with self.callers.lock_of(caller_of(context)):
            return await call(self, request, context)

    return wrapped  # type: ignore[return-value]  # a decorator that keeps the signature


def caller_of(context: Context[Any, Any]) -> str:
    """Return the name of the connection on which the client called; a forwarded call has come over two."""
    client = next((value for key, value in context.invocation_metadata() or () if key == FORWARDED), "")
    return f"{context.peer()} {client!s}"


def was_forwarded(context: Context[Any, Any]) -> bool:
    """Return whether another worker has forwarded this call."""
    return any(key == FORWARDED for key, _ in context.invocation_metadata() or ())
