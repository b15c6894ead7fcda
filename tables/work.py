"""The work of one command, counted in steps: the same on every machine, and by no clock.

A step is about ten nanoseconds of one core. What would pass the bound is not done: the guard does not hold, the step
fails.
"""

from __future__ import annotations

from ports.errors import CeremonyError

# Steps of one command: guards, schemas, templates and joined values together.
MOST_STEPS = 4_500_000
# Counting the steps of joined values takes at most such a part of them.
_PART_COUNTED = 4


class WorkSpent(CeremonyError):
    """The command has no steps left for this."""

    def __init__(self) -> None:
        super().__init__("too_much_work", f"the work of one command would exceed {MOST_STEPS} steps")


class Work:
    """The steps that are left for a command."""

    __slots__ = ("_met", "left")

    def __init__(self, left: int = MOST_STEPS) -> None:
        self.left = left
        self._met: set[int] = set()

    def meets(self, thing: object) -> bool:
        """Return whether the command uses this thing, which lives longer than it, for the first time."""
        known = len(self._met)
        self._met.add(id(thing))
        return len(self._met) > known

    def spend(self, steps: int) -> None:
        """Take steps that are about to be done. Raises WorkSpent, and takes none, where too few are left."""
        if steps > self.left:
            raise WorkSpent
        self.left -= steps

    def takes(self, steps: int) -> bool:
        """Take steps and return True. Where too few are left, return False, and take a part of them for the count."""
        if steps > self.left:
            self.left -= self.left // _PART_COUNTED
            return False
        self.left -= steps
        return True

    def drain(self, steps: int) -> None:
        """Take steps that are done already; where too few were left, none is left for others."""
        self.left = self.left - steps if steps < self.left else 0
