"""Lines of the program's log, as a part that writes many of them at once hands them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

# Fields of a line by name, in the order in which they are shown; `event` and `level` are among them, None is not.
LogLine = Mapping[str, Any]


class LineLevel(StrEnum):
    INFO = "info"
    WARNING = "warning"


class LineSink(Protocol):
    """Takes lines for the log."""

    def wants(self, level: LineLevel) -> bool:
        """Return whether lines of this level are written; cheap."""

    def write(self, lines: Sequence[LogLine]) -> None:
        """Write the lines at once, redacted, in their order. Never raises."""
