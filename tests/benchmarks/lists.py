"""Measures lists by the index: the time of a page of 50 over more and more ceremonies, and the cost of the upkeep.

The ceremonies lie encoded in the tables of one partition, as after a take-over; their definition has two searchable
inputs. A page is searched, and its rows are read and encoded as messages that no list has encoded before. Each time is
the median of its repetitions. Memory is the resident memory of the process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table as Printed

from bridge.grpc import messages
from bridge.grpc.listed_rows import ListedRows
from ceremony.heap import collect_seldom
from steps.secrets.redactor import TextRedactor
from streams.api import Query
from streams.row_index import PartitionIndex
from streams.search import search
from streams.topics import CEREMONIES
from streams.topology import TABLES
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStore
from streams.transport.partition.rows import Table
from tables.instance import CeremonyStatus, Instance, StepState, StepStatus, encode_instance
from tests.benchmarks.meter import resident_bytes
from tests.streams.search_world import DEFINITIONS, KINDS, run

BEGAN = 1_700_000_000_000
PAGE = 50
DEFINITION = next(iter(DEFINITIONS.values()))
QUERIES: dict[str, Query] = {
    "none": Query(),
    "state": Query(state="SENT"),
    "status, definition": Query(status="COMPLETED", definition=DEFINITION.name),
    "story": Query(story="S-7"),
    "an input, by all": Query(inputs=(("team", "red"),)),
    "an input, by few": Query(inputs=(("size", "7"),)),
    "an error code": Query(error_code="timeout"),
    "a week": Query(created_from=BEGAN + 100_000, created_before=BEGAN + 900_000),
    "state, input, week": Query(
        state="SENT", inputs=(("team", "red"),), created_from=BEGAN, created_before=BEGAN + 900_000
    ),
}


class Site:
    """The rows of one partition in memory."""

    number = 0

    def __init__(self, count: int) -> None:
        draw = random.Random(count)
        spec = TABLES[0]
        encoded = {row.instance_id.encode(): encode_instance(row) for row in _rows(draw, count)}
        self._table = Table(spec, 0, MemoryStore({CEREMONIES: encoded}), RowCache())
        self.index = PartitionIndex(self, lambda *_: DEFINITION, KINDS)  # type: ignore[arg-type]  # a part of a view
        self.losses = 0

    def scan(self, _table: str, decode: Any = None, keys: Any = None) -> Iterator[tuple[bytes, Any]]:
        return self._table.scan(decode, keys)

    def get(self, instance_id: str) -> Instance | None:
        row: Instance | None = self._table.get(instance_id.encode())
        return row

    def position_of(self, _: str) -> tuple[int, int]:
        return 0, 1

    def page(self, query: Query) -> int:
        """Search a page and encode it; return its number of rows."""
        reads: Any = self
        found = run(search(self.index, query, PAGE + 1))
        listed = ListedRows(reads, lambda row: messages.ceremony(row, DEFINITION, []), TextRedactor())
        return len(run(listed.answer([instance_id for _, instance_id in found.keys[:PAGE]])).rows)

    def change(self, keys: Sequence[bytes]) -> float:
        """Change the state of these rows in one batch; return the seconds in which the index notes it."""
        before = {key: self._table[key] for key in keys}
        rows = {key: replace(row, version=row.version + 1, state="OPEN") for key, row in before.items()}
        self._table.apply(rows)
        return _seconds(lambda: self.index.changed(rows, before))


def _rows(draw: random.Random, count: int) -> Iterator[Instance]:
    """Ceremonies of the last `count` milliseconds: nine in ten are completed, one in a hundred has failed."""
    for number in range(count):
        ended = draw.random() < 0.9
        failed = draw.random() < 0.01
        steps = {
            "let_in": StepState(StepStatus.COMPLETED, 1, output={"message": "Let it in?", "approved": True}),
            "tell": StepState(StepStatus.FAILED if failed else StepStatus.COMPLETED, 1, error_code="timeout" * failed),
        }
        yield Instance(
            instance_id=f"ceremony-{number:07d}:S-{number // 5}",
            ceremony_id=f"ceremony-{number:07d}",
            story_id=f"S-{number // 5}",
            definition_name=DEFINITION.name,
            definition_hash=DEFINITION.hash,
            correlation_id=f"ceremony-{number:07d}:S-{number // 5}",
            requested_by="anna",
            start_digest="0" * 64,
            state="DONE" if ended else "SENT",
            status=CeremonyStatus.COMPLETED if ended else CeremonyStatus.RUNNING,
            created_at=BEGAN + number * 1_000_000 // count,
            updated_at=BEGAN + 1_000_000,
            inputs={"team": draw.choice(["red", "blue"]), "size": draw.randrange(count // 20)},
            steps=steps,
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """The lists over one number of rows."""

    rows: int
    fill_us: float
    """To enter a row after a take-over: read, decoded, sorted."""
    bytes_per_row: float
    """Of the index."""
    noted_us: float
    """To note a changed row in a batch."""
    entered_us: float
    """To enter a changed row in the background."""
    page_ms: dict[str, float]
    """By filter."""


def measure(count: int, repetitions: int) -> Figures:
    site = Site(count)
    gc.collect()
    before = resident_bytes(os.getpid())
    fill = _seconds(lambda: _all(site.index.fill()))
    memory = resident_bytes(os.getpid()) - before
    keys = [f"ceremony-{number:07d}:S-{number // 5}".encode() for number in random.Random(1).sample(range(count), 500)]
    noted = site.change(keys)
    entered = _seconds(lambda: _all(site.index.catch_up()))
    pages = {name: _page_ms(site, query, repetitions) for name, query in QUERIES.items()}
    each = 1e6 / len(keys)
    return Figures(count, fill / count * 1e6, memory / count, noted * each, entered * each, pages)


def _page_ms(site: Site, query: Query, repetitions: int) -> float:
    return statistics.median(_seconds(lambda: site.page(query)) for _ in range(repetitions)) * 1000


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _all(pieces: Iterator[None]) -> None:
    for _ in pieces:
        pass


def table(found: Sequence[Figures]) -> Printed:
    printed = Printed("", *(f"{one.rows:,} rows" for one in found))
    printed.add_row("index filled, µs a row", *(f"{one.fill_us:.1f}" for one in found))
    printed.add_row("index, bytes a row", *(f"{one.bytes_per_row:.0f}" for one in found))
    printed.add_row("changed row noted, µs", *(f"{one.noted_us:.2f}" for one in found))
    printed.add_row("changed row entered, µs", *(f"{one.entered_us:.1f}" for one in found), end_section=True)
    for name in QUERIES:
        printed.add_row(f"page by {name}, ms", *(f"{one.page_ms[name]:.2f}" for one in found))
    return printed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.lists", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--repetitions", type=int, default=21, help="of each page")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    collect_seldom()
    found = [measure(count, options.repetitions) for count in options.rows]
    if options.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        Console(width=120).print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
