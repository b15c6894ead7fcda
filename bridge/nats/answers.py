"""Takes the answers of JetStream out of what the socket brought, before nats-py's parser sees it.

There is one for each message published, some eighty bytes each: through nats-py's parser, headers, message, queue and
task it costs several times what sending did.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

Hear = Callable[[int, bytes], None]
"""Is given the number that an answer's subject ends with, and its body. Must not raise: the connection would end."""

_BEGINS = re.compile(rb"MSG (_INBOX\.[^.\s]+)\.")
_ANSWER = re.compile(rb"MSG (_INBOX\.[^.\s]+)\.(\d{1,18}) \d+ (\d{1,9})\r\n(\{[^\r\n]*\})\r\n")
"""A message without headers and without a reply, whose body is one line of JSON."""
_LINES = 2
"""Of such a message."""


class AnswersFirst(Parser):
    """nats-py's parser; what it does not take itself at the start of a read goes the usual way."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.inboxes: dict[bytes, Hear] = {}

    async def parse(self, data: bytes = b"") -> None:
        self.buf.extend(data)
        if self.state == AWAITING_CONTROL_LINE:
            del self.buf[: self._answers()]
            if self._cut():
                return  # its rest comes with the next read
        await super().parse()

    def _answers(self) -> int:
        """Hand over the answers that the buffer begins with; returns where they end."""
        end = 0
        while (found := _ANSWER.match(self.buf, end)) is not None:
            inbox, number, size, body = found.groups()
            hear = self.inboxes.get(inbox)
            if hear is None or len(body) != int(size):
                break
            hear(int(number), body)
            end = found.end()
        return end

    def _cut(self) -> bool:
        """Whether the buffer begins with a part of an answer."""
        found = _BEGINS.match(self.buf)
        return found is not None and found[1] in self.inboxes and self.buf.count(b"\r\n") < _LINES
