"""The ceremonies that the benchmark runs: five steps that the fold settles at once, and five that ask their agent."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from steps.registry import all_kinds
from tables.definition import Definition
from tables.definitions.loader import load
from tests.benchmarks.processes import SPECS

# Steps of one ceremony, of any workload.
STEPS = 5


class Workload(NamedTuple):
    """A kind of ceremony that the benchmark runs."""

    name: str
    """Name of the definition."""
    folder: Path
    """Folder of its file: CEREMONIES_DIR of a worker that starts it by its name."""
    steps: str
    """Ids of the steps."""
    messages: int
    """Messages of one ceremony on the stream CEREMONY: its events and its publications."""
    how: str
    """The way of the five steps, for people."""

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
# Subject and type of the published messages.
SAID = "ceremony.bench.said"
