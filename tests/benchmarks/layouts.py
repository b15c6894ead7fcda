"""Layouts: the worker processes that share the work of one run, as in `2` or `engine+bridge`."""

from __future__ import annotations

from typing import NamedTuple

ALL_ROLES = "engine,bridge"
MOST = 16


class Layout(NamedTuple):
    """A set of worker processes on one log."""

    name: str
    """The layout as written in the option."""
    roles: tuple[str, ...]
    """CEREMONY_ROLE of each process."""

    def members(self, role: str) -> int:
        """Return the number of processes with this role."""
        return sum(role in roles.split(",") for roles in self.roles)

    def __str__(self) -> str:
        count = len(self.roles)
        workers = "1 worker" if count == 1 else f"{count} workers"
        return workers if self.name.isdecimal() else f"{workers} ({self.name})"


ONE = Layout("1", (ALL_ROLES,))


def parse_layouts(text: str) -> list[Layout]:
    """Parse `1,2,engine+bridge`: a number of workers with all roles, or a worker for each role. Raises ValueError."""
    layouts = [_layout(part.strip()) for part in text.split(",")]
    if len({layout.name for layout in layouts}) < len(layouts):
        raise ValueError(f"{text}: each once")
    return layouts


def _layout(name: str) -> Layout:
    if name.isdecimal() and 1 <= int(name) <= MOST:
        return Layout(name, (ALL_ROLES,) * int(name))
    layout = Layout(name, tuple(name.split("+")))
    if set(layout.roles) != {"engine", "bridge"}:
        raise ValueError(f"{name!r}: a number of workers up to {MOST}, or roles such as engine+bridge")
    return layout
