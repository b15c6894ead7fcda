"""Reads the fenced blocks of a page, each with the mark above it.

A mark is an HTML comment in the line above the fence, which no reader sees:

- `file: PATH` — the block is the text of this file
- `runs on` — the command goes on while the page's later blocks run
- `repeated until it succeeds`
- `exit N` — the commands end with this code
- `not run: REASON`
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
NOT_RUN, FILE, EXIT = "not run: ", "file: ", "exit "
RUNS_ON, REPEATED = "runs on", "repeated until it succeeds"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def runs(self) -> bool:
        return self.language == "sh" and not self.mark.startswith(NOT_RUN)

    @property
    def file(self) -> str:
        """The path of the file that it shows; empty if it shows none."""
        return self.mark.removeprefix(FILE) if self.mark.startswith(FILE) else ""

    @property
    def exit_code(self) -> int:
        return int(self.mark.removeprefix(EXIT)) if self.mark.startswith(EXIT) else 0

    @property
    def known_mark(self) -> bool:
        if self.mark in ("", RUNS_ON, REPEATED):
            return True
        prefix = next((prefix for prefix in (NOT_RUN, FILE, EXIT) if self.mark.startswith(prefix)), None)
        return prefix is not None and len(self.mark) > len(prefix)


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match["language"], match["mark"] or "", match["text"])
