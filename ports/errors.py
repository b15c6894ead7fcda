"""The root of the error tree, and the error that all ports share.

An error carries a stable code, and says what is wrong, where, and what would be right.
"""

from __future__ import annotations


class Unreachable(Exception):
    """A neighbour cannot be reached, or did not answer before the call's deadline; asking again later makes sense."""

    def __init__(self, neighbour: str, reason: str) -> None:
        super().__init__(f"{neighbour}: {reason}")
        self.neighbour = neighbour
        """`ray_executor` or `nats`."""
        self.reason = reason
        """One line for people; no raw exception text."""
