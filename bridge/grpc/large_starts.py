"""Large start requests: each stays encoded until its turn, and one at a time is decoded and converted.

A decoded request takes four times its bytes. While several are alive, decoding one takes nearly three times as long,
because its memory is mapped anew, and conversions that take turns end all at once, so their folds follow each other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from bridge.grpc.callers import Callers, caller_of
from bridge.grpc.decoding import CODE, MESSAGE
from bridge.grpc.refusals import invalid
from streams.turns import Turns

# Bytes of a start request above which it waits until no other such request is decoded or converted. A smaller one takes
# half a millisecond to decode, and does not wait for larger ones.
LARGE_START_BYTES = 256 * 1024

Context = grpc.aio.ServicerContext


def _ids_message() -> Any:
    """The request's message with nothing but the ids; a decoder keeps all other fields as bytes."""
    message = DescriptorProto()
    pb.StartPlanningCeremonyRequest.DESCRIPTOR.CopyToProto(message)
    ids = [field for field in message.field if field.name in ("ceremony_id", "story_id", "request_id")]
    for field in ids:
        field.ClearField("proto3_optional")
        field.ClearField("oneof_index")
    file = FileDescriptorProto(name="start_ids.proto", package="ceremony", syntax="proto3")
    file.message_type.append(DescriptorProto(name="StartIds", field=ids))
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("ceremony.StartIds"))


_StartIds = _ids_message()


class EncodedStart:
    """A start request of which only the ids are decoded yet; it can be forwarded like the message."""

    DESCRIPTOR = pb.StartPlanningCeremonyRequest.DESCRIPTOR
    __slots__ = ("_data", "_ids")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._ids: Any = None

    @classmethod
    def if_large(cls, data: bytes) -> EncodedStart | None:
        """The request for bytes that must wait; None for bytes that are decoded at once."""
        return cls(data) if len(data) > LARGE_START_BYTES else None

    @property
    def ceremony_id(self) -> str:
        return str(self._decoded_ids().ceremony_id)

    @property
    def story_id(self) -> str:
        return str(self._decoded_ids().story_id)

    @property
    def request_id(self) -> str:
        return str(self._decoded_ids().request_id)

    @request_id.setter
    def request_id(self, value: str) -> None:
        self._data += _StartIds(request_id=value).SerializeToString()  # of a field given twice the last one counts
        self._ids = None

    def SerializeToString(self) -> bytes:
        return self._data

    def decoded(self) -> pb.StartPlanningCeremonyRequest:
        """The whole message. Raises CallRefused for bytes that are none."""
        try:
            return pb.StartPlanningCeremonyRequest.FromString(self._data)
        except DecodeError:
            raise invalid(CODE, MESSAGE) from None

    def _decoded_ids(self) -> Any:
        """The ids; empty for bytes that are no message, which the worker that decodes them all refuses."""
        if self._ids is None:
            try:
                ids = _StartIds.FromString(self._data)
            except DecodeError:
                ids = _StartIds()
            ids.DiscardUnknownFields()
            self._ids = ids
        return self._ids


class LargeStarts:
    """Lets one large start request at a time be decoded and converted, the connections in turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._callers = Callers()
        self._one = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def decoded(
        self, request: pb.StartPlanningCeremonyRequest | EncodedStart, context: Context[Any, Any]
    ) -> AsyncIterator[pb.StartPlanningCeremonyRequest]:
        """Wait for the request's turn, and decode it; the next one's turn comes when the block ends.

        Of each connection one request waits for the turn and the others for that one, so that a connection with many
        requests does not delay the others by all of them.
        """
        if not isinstance(request, EncodedStart):
            yield request
            return
        async with self._callers.lock_of(caller_of(context)), self._one:
            await self._turns.next()
            yield request.decoded()
