"""The parser of acknowledgements in front of nats-py's parser, on the bytes that a server sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bridge.nats.client import AnswerParser

OURS, ANOTHER = "_INBOX.ours", "_INBOX.another"


class Client:
    """The part of nats-py's client that its parser calls."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.seen.append((subject, reply, data, headers))

    async def _process_pong(self) -> None:
        self.seen.append("PONG")


def answer(number: object, body: bytes = b'{"stream":"CEREMONY", "seq":7}', inbox: str = OURS) -> bytes:
    return f"MSG {inbox}.{number} 2 {len(body)}\r\n".encode() + body + b"\r\n"


async def parsed(reads: Sequence[bytes]) -> tuple[list[tuple[int, bytes]], list[Any]]:
    """The answers given to the handler, and the messages that went through nats-py."""
    client = Client()
    parser = AnswerParser(client)
    heard: list[tuple[int, bytes]] = []
    parser.inboxes[OURS.encode()] = lambda number, body: heard.append((number, body))
    for read in reads:
        await parser.parse(read)
    assert not parser.buf
    return heard, client.seen


async def test_plain_answers_bypass_nats_py() -> None:
    """So do errors and duplicates, whose body is one line of JSON."""
    error = b'{"error":{"code":503,"description":"x"},"stream":"CEREMONY","seq":0}'
    heard, seen = await parsed([answer(1) + answer(23, error)])
    assert heard == [(1, b'{"stream":"CEREMONY", "seq":7}'), (23, error)]
    assert seen == []


async def test_reads_cut_at_any_byte_deliver_each_message_once_and_whole() -> None:
    """Answers, an answer without a responder, a pong and other messages, cut at every byte."""
    usual = [
        b"PONG\r\n",
        b"HMSG _INBOX.ours.2 2 16 16\r\nNATS/1.0 503\r\n\r\n\r\n",
        b"MSG agent.response.completed 3 $JS.ACK.x 14\r\nMSG _INBOX.our\r\n",
        answer(3, inbox=ANOTHER),
    ]
    stream = answer(0) + answer(1) + b"".join(usual) + answer(4) + answer(5)
    wanted = sorted(map(str, await _messages([stream])))
    assert len(wanted) == 8
    for cut in range(1, len(stream)):
        assert sorted(map(str, await _messages([stream[:cut], stream[cut:]]))) == wanted, cut
    heard, seen = await parsed([stream[n : n + 1] for n in range(len(stream))])
    assert [number for number, _ in heard] == [0, 1, 4, 5]
    assert len(seen) == len(usual)


async def _messages(reads: Sequence[bytes]) -> list[Any]:
    """All messages, of both ways: an answer behind another message in one read may go through nats-py."""
    heard, seen = await parsed(reads)
    return [*((f"{OURS}.{number}".encode(), b"", body, None) for number, body in heard), *seen]


@pytest.mark.parametrize(
    "message",
    [
        answer(1, b""),
        answer(1, b"+OK"),
        answer(1, b'{"a":\r\n1}\r\n{}'),
        answer(1, b'{"a":1}\r\n'),
        answer("x"),
        answer("1.2"),
        answer("9" * 30),
        answer(1, inbox=ANOTHER),
        b"MSG _INBOX.ours.1 2 reply.to 2\r\n{}\r\n",
    ],
)
async def test_other_messages_go_through_nats_py(message: bytes) -> None:
    heard, seen = await parsed([message, b"PONG\r\n"])
    assert heard == [] and len(seen) == 2 and seen[1] == "PONG"


async def test_an_incomplete_answer_is_dropped_with_its_connection() -> None:
    """nats-py resets its parser then."""
    parser = AnswerParser(Client())
    heard: list[int] = []
    parser.inboxes[OURS.encode()] = lambda number, _: heard.append(number)
    await parser.parse(answer(1)[:-5])
    parser.reset()
    await parser.parse(answer(2))
    assert heard == [2]
