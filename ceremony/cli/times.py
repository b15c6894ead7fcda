"""Times on the command line: a moment, or an age."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from bridge.clock import HostClock
from ceremony.cli.errors import CommandFailed, Exit

AGO = re.compile(r"([0-9]{1,9})([smhd])")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(option: str, text: str) -> datetime:
    """Parse `2026-01-31T12:00:00Z`, in UTC where it names no offset, or an age such as `90m`. Raises CommandFailed."""
    try:
        if ago := AGO.fullmatch(text):
            return datetime.fromtimestamp(HostClock().wall(), UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        then = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        wanted = "a time like 2026-01-31T12:00:00Z, or 90m, 12h, 3d"
        raise CommandFailed(f"{option}_invalid", f"--{option} {text!r}", Exit.USAGE, remedy=f"use {wanted}") from None
    return then if then.tzinfo else then.replace(tzinfo=UTC)
