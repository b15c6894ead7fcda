"""The ceremonies that the benchmark runs: five steps that the fold settles at once, and five that ask their agent."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from steps.registry import all_kinds
from tables.definition import Definition
from tables.definitions.loader import load
from tests.benchmarks.processes import SPECS

# Of one ceremony, of any workload.
STEPS = 5


class Workload(NamedTuple):
    """Ceremonies of one definition."""

    name: str
    """Of the definition."""
    folder: Path
    """Where its file is: CEREMONIES_DIR of a worker that is to start it by its name."""
    steps: str
    """What they are called."""
    messages: int
    """On the stream CEREMONY, of one ceremony: its events, and what its steps publish."""
    how: str
    """What becomes of the five steps, for people."""

    def definition(self) -> Definition:
        file = self.folder / f"{self.name}.yaml"
        return load(file.read_text(encoding="utf-8"), file.name, all_kinds())


# Events: started, five steps executed, one transition, completed.
MERGES = Workload("merge_chain", SPECS, "merges", 8, "five merges, settled in one command")
# Events: started; of each step requested, completed, executed; transition, completed. And five publications.
PUBLISHES = Workload(
    "publish_chain",
    Path(__file__).parent / "ceremonies",
    "publish steps",
    1 + 5 * (3 + 1) + 2,
    "five publish steps, each asks its agent",
)
# Subject and type of what they publish.
SAID = "ceremony.bench.said"
