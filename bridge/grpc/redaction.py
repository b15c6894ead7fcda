"""Redacts everything that the service answers: messages, errors and metadata. Every call passes this interceptor.

Most answers hold nothing to redact: their texts are looked at together, and only those of a suspicious answer one by
one. The encoded bytes would not do: the length before a text can be a letter, which hides the begin of a word.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from bridge.grpc.error_details import DETAILS_KEY, decoded, fitted, fitting_text, repacked, unpacked
from ports.redaction import Redactor

# A method handler; generated ones have no types.
Handler = Any
Metadata = Iterable[tuple[str, str | bytes]]
_ANSWERS = {
    f"/{pb.DESCRIPTOR.services_by_name['PlanningCeremonyProcessor'].full_name}/{name}": GetMessageClass(
        method.output_type
    )
    for name, method in pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"].methods_by_name.items()
}


class CleanBytes(bytes):
    """An encoded message, or a part of one, that was redacted as it was encoded."""


def encoded(message: Message, redactor: Redactor) -> CleanBytes:
    """Encode a message redacted; the message itself may change."""
    texts: list[str] = []
    _collect(message, texts)
    if redactor.suspicious("\n".join(texts).encode(errors="surrogateescape"), json=False):
        _redact(message, redactor)
    return CleanBytes(message.SerializeToString())


def _collect(message: Message, texts: list[str]) -> None:
    """Collect the texts of a message."""
    for field, value in message.ListFields():
        if isinstance(value, str | bytes):
            texts.append(_text(value))
        elif isinstance(value, Message):
            _collect(value, texts)
        elif field.message_type is None:
            texts += map(_text, value) if field.cpp_type == field.CPPTYPE_STRING else ()
        elif field.message_type.GetOptions().map_entry:
            _collect_map(value, texts)
        else:
            for item in value:
                _collect(item, texts)


def _collect_map(entries: Any, texts: list[str]) -> None:
    """Collect the entries of a map as JSON would have them: a key is the name of its text."""
    for key, item in entries.items():
        texts.append(f'"{key}":"{item}"' if isinstance(item, str) else str(key))
        if isinstance(item, Message):
            _collect(item, texts)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="surrogateescape")


def _redact(message: Message, redactor: Redactor) -> None:
    for field, value in message.ListFields():
        if isinstance(value, str):
            setattr(message, field.name, redactor.text(value))
        elif isinstance(value, bytes):
            setattr(message, field.name, redactor.data(value))
        elif isinstance(value, Message):
            _redact(value, redactor)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            _redact_map(value, redactor)
        elif field.message_type is not None:
            for item in value:
                _redact(item, redactor)
        elif field.cpp_type == field.CPPTYPE_STRING:
            value[:] = [redactor.text(one) if isinstance(one, str) else redactor.data(one) for one in value]


def _redact_map(entries: Any, redactor: Redactor) -> None:
    if any(isinstance(value, Message) for value in entries.values()):
        for value in entries.values():
            _redact(value, redactor)
        return
    redacted = redactor.redact(dict(entries))
    if redacted.findings:
        entries.clear()
        entries.update(redacted.value)


class AnswerRedaction(grpc.aio.ServerInterceptor):
    """The outermost interceptor of one service."""

    def __init__(self, service: str, redactor: Redactor) -> None:
        self._prefix = f"/{service}/"
        self._redactor = redactor
        self._known: dict[str, tuple[Handler, Handler]] = {}
        """By method: its last handler and the redacting one."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or not method.startswith(self._prefix):
            return handler
        known, redacting = self._known.get(method, (None, None))
        if known is not handler:
            redacting = self._redacting(handler, method)
            self._known[method] = handler, redacting
        return redacting

    def _redacting(self, handler: Handler, method: str) -> Handler:
        kind, redactor = _ANSWERS[method], self._redactor

        def clean(answer: Any) -> bytes:
            if not isinstance(answer, CleanBytes):
                answer = encoded(answer if isinstance(answer, Message) else kind.FromString(answer), redactor)
            return bytes(answer)  # gRPC takes no subclass

        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else _unary_stream
            call = handler.stream_stream if handler.request_streaming else handler.unary_stream
            return make(_stream(call, clean, redactor), handler.request_deserializer, None)
        make = grpc.stream_unary_rpc_method_handler if handler.request_streaming else _unary_unary
        call = handler.stream_unary if handler.request_streaming else handler.unary_unary
        return make(_unary(call, clean, redactor), handler.request_deserializer, None)


_unary_unary, _unary_stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler


def _unary(
    call: Callable[[Any, Any], Awaitable[Any]], clean: Callable[[Any], bytes], redactor: Redactor
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def unary(request: Any, context: Any) -> bytes | None:
        answer = await call(request, RedactingContext(context, redactor))
        return None if answer is None else clean(answer)

    return unary


def _stream(
    call: Callable[[Any, Any], AsyncIterator[Any]], clean: Callable[[Any], bytes], redactor: Redactor
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        async for answer in call(request, RedactingContext(context, redactor)):
            yield clean(answer)

    return stream


class RedactingContext:
    """A call's context: whatever it sends to the client beside the answer is redacted."""

    __slots__ = ("_context", "_redactor")

    def __init__(self, context: Any, redactor: Redactor) -> None:
        self._context = context
        self._redactor = redactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_details(self, details: str) -> None:
        self._context.set_details(redacted_text(details, self._redactor))

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        self._context.set_trailing_metadata(self._metadata(trailing_metadata))

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        await self._context.send_initial_metadata(self._metadata(initial_metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        await self._context.abort(code, redacted_text(details, self._redactor), self._metadata(trailing_metadata))

    def _metadata(self, metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
        return tuple((key, _redacted_value(key, value, self._redactor)) for key, value in metadata)


def redacted_text(text: str, redactor: Redactor) -> str:
    """The text of a refusal; a marker can be longer than the secret, so it is cut again."""
    return fitting_text(redactor.text(text))


def redacted_status(data: bytes, redactor: Redactor) -> bytes:
    """The details of a refusal, with the text that it has beside them; bytes that are none become none."""
    status = decoded(data)
    if status is None:
        return b""
    status.message = redacted_text(status.message, redactor)
    details = unpacked(status)
    clean = [type(one).FromString(encoded(one, redactor)) for one in details]
    return fitted(repacked(status, clean))


def _redacted_value(key: str, value: str | bytes, redactor: Redactor) -> str | bytes:
    if isinstance(value, str):
        return redactor.text(value)
    return redacted_status(value, redactor) if key == DETAILS_KEY else redactor.data(value)
