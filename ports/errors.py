"""The root of the error tree, and the error that all ports share.

An error has a stable code, a message, the place at fault and a remedy.
"""

from __future__ import annotations


class CeremonyError(Exception):
    """Root of the tree. Its text is `code: place: message; remedy`, without the parts that are empty."""

    def __init__(self, code: str, message: str, *, place: str = "", remedy: str = "") -> None:
        super().__init__(code, message, place, remedy)
        self.code = code
        """Stable, lower snake case; programs may compare it."""
        self.message = message
        """The problem in one line for people, without raw exception text."""
        self.place = place
        """File and line, setting, field or record at fault; empty where the message names it."""
        self.remedy = remedy
        """The correct value, or the action that helps."""

    @property
    def text(self) -> str:
        """`place: message; remedy`, for a caller that shows the code separately."""
        text = ": ".join(part for part in (self.place, self.message) if part)
        return f"{text}; {self.remedy}" if self.remedy else text

    def __str__(self) -> str:
        return ": ".join(part for part in (self.code, self.text) if part)


class Unreachable(CeremonyError):
    """A neighbour cannot be reached, or did not answer before the call's deadline; asking again later makes sense."""

    def __init__(self, neighbour: str, reason: str) -> None:
        super().__init__(f"{neighbour}_unreachable", reason, place=neighbour)
        self.neighbour = neighbour
        """`ray_executor` or `nats`."""
        self.reason = reason
        """One line for people; no raw exception text."""
