"""The headers of a message beside its id: they name its ceremony, so that a consumer sorts without decoding."""

from __future__ import annotations

import re
from functools import lru_cache

from ports.provenance import Provenance

INSTANCE = "Ceremony-Instance"
DEFINITION = "Ceremony-Definition"
TRACEPARENT = "traceparent"
# A value that cannot begin another header, and that every client reads back as it is.
_VALUE = re.compile(r"[!-~]{1,512}")


@lru_cache(maxsize=4096)  # the messages of a ceremony follow each other
def header_lines(provenance: Provenance) -> str:
    """Return the headers as lines of the protocol; fields that are not known, or no header values, are left out."""
    named = zip((INSTANCE, DEFINITION, TRACEPARENT), provenance, strict=True)
    return "".join(f"{name}: {value}\r\n" for name, value in named if _VALUE.fullmatch(value))


def read_lines(lines: str) -> dict[str, str]:
    """Return the headers in lines of `header_lines`, by name."""
    return dict(line.split(": ", 1) for line in lines.split("\r\n") if line)
