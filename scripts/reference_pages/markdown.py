"""Pieces of Markdown: tables, code spans, and the head of a generated page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def page(title: str, introduction: str, *sections: str) -> str:
    """A whole page, which ends with one line break."""
    head = f"# {title}\n\n<!-- Written by scripts/docs; changes here are lost. -->\n\n{introduction}\n"
    return "\n".join([head, *(section.strip("\n") + "\n" for section in sections)])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(heads), "|" + "---|" * len(heads)]
    return "\n".join([*lines, *map(_row, rows)]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |"


def code(text: object) -> str:
    """A code span within a table."""
    shown = str(text).replace("|", "\\|")
    fence = "``" if "`" in shown else "`"
    return f"{fence}{shown}{fence}" if shown else ""


def prose(text: str) -> str:
    """One paragraph of a docstring or comment, safe within a table."""
    joined = re.sub(r"\s+", " ", text).strip()
    parts = re.split(r"(`[^`]*`)", joined)
    return "".join(part if index % 2 else _escaped(part) for index, part in enumerate(parts)).replace("|", "\\|")


def _escaped(text: str) -> str:
    marked = re.sub(r"([*_\[\]])", r"\\\1", text)
    return marked.replace("<", "&lt;").replace(">", "&gt;")


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"
