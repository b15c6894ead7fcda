"""Encodes answers with many messages: each message by itself, so that no turn of the event loop encodes all of them.

gRPC would encode a whole answer in one go on the loop, 2 ms for a thousand ceremonies. A protobuf message may be given
as its encoded fields one after the other, so the messages of a repeated field are encoded in pieces and joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from google.protobuf.message import Message

from bridge.grpc.redaction import CleanBytes
from streams.turns import Turns

# The work of gRPC to send an answer, which nobody can measure here: it copies the bytes, and its threads write them.
SENDING_SECONDS_PER_BYTE = 5e-9
_LENGTH_DELIMITED, _MORE, _BITS = 2, 0x80, 7


def with_repeated(answer: Message, field: str, encoded: Iterable[CleanBytes]) -> CleanBytes:
    """Encode `answer` with these messages in a repeated field, which is empty in `answer`; its others hold no texts."""
    number = answer.DESCRIPTOR.fields_by_name[field].number
    return CleanBytes(b"".join([*_fields(number, encoded), answer.SerializeToString()]))


async def sent_in_turn(answer: Message, field: str, encoded: Iterable[CleanBytes], turns: Turns) -> CleanBytes:
    """`with_repeated` for an answer of a heavy read, whose caller waits for the time that sending it takes."""
    data = with_repeated(answer, field, encoded)
    turns.owe(len(data) * SENDING_SECONDS_PER_BYTE)
    await turns.next()
    return data


def unless_bytes(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    """Return a serialiser for messages and for answers that are encoded already."""
    return lambda answer: answer if isinstance(answer, bytes) or serialize is None else serialize(answer)


def _fields(number: int, encoded: Iterable[bytes]) -> Iterator[bytes]:
    tag = _varint(number << 3 | _LENGTH_DELIMITED)
    for data in encoded:
        yield tag + _varint(len(data))
        yield data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= _MORE:
        found.append(value & (_MORE - 1) | _MORE)
        value >>= _BITS
    found.append(value)
    return bytes(found)
