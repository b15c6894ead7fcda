"""Shared by the tests of the client: an engine of their own, whose answers a test sets, for sync and async clients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.refusals import CallRefused, details_and_trailers
from streams.api import Overloaded, Unavailable

SERVICE = pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Plain(NamedTuple):
    """A refusal without details, as an older engine or gRPC itself sends it."""

    status: grpc.StatusCode
    text: str


# The answer to a request: an exception refuses it.
Answers = Callable[[Any], Any]


def accepted(request: Any) -> pb.StartPlanningCeremonyResponse:
    return pb.StartPlanningCeremonyResponse(instance_id=f"{request.ceremony_id}:{request.story_id}", status="accepted")


@dataclass
class Engine(grpc.GenericRpcHandler):
    """Records every request. The first answers are those of `first`, one each; then `answers` gives them."""

    answers: Answers = accepted
    first: list[Any] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = SERVICE.methods_by_name[handler_call_details.method.rpartition("/")[2]]
        parse = getattr(pb, method.input_type.name).FromString
        write = getattr(pb, method.output_type.name).SerializeToString
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._many, parse, write)
        return grpc.unary_unary_rpc_method_handler(self._one, parse, write)

    def _next(self, request: Any) -> Any:
        with self.lock:
            self.requests.append(request)
            if self.first:
                return self.first.pop(0)
        return self.answers(request)

    def _one(self, request: Any, context: grpc.ServicerContext) -> Any:
        answer = self._next(request)
        if isinstance(answer, (Exception, Plain)):
            refuse(context, answer, request)
        return answer

    def _many(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for answer in self._next(request):
            if isinstance(answer, Exception):
                refuse(context, answer, request)
            yield answer

    def ids(self) -> list[str]:
        with self.lock:
            return [request.ceremony_id for request in self.requests]


def refuse(context: grpc.ServicerContext, answer: Exception | Plain, request: Any) -> None:
    """End a call as the engine does."""
    refusal = answer
    if isinstance(answer, Plain):
        context.abort(answer.status, answer.text)
    if isinstance(answer, (Unavailable, Overloaded)):
        status = UNAVAILABLE if isinstance(answer, Unavailable) else grpc.StatusCode.RESOURCE_EXHAUSTED
        refusal = CallRefused(status, answer.code, answer.message, answer.retry_after_seconds)
    assert isinstance(refusal, CallRefused)
    text, trailing = details_and_trailers(refusal, request)
    context.set_trailing_metadata(trailing)
    context.abort(refusal.status, text)


@contextmanager
def serving(engine: Engine, port: int = 0) -> Iterator[str]:
    """Serve until the block ends; yields the address."""
    server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((engine,))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(None).wait()


def start_fields(ceremony_id: str = "c1", **more: Any) -> dict[str, Any]:
    return {
        "definition_name": "review",
        "ceremony_id": ceremony_id,
        "story_id": "s1",
        "requested_by": "po",
        **more,
    }
