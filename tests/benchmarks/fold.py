"""Measures the pure path of a step by stage, in µs of CPU: ceremonies of `merge_chain` in memory, without any log.

The commands pass the real ceremony agent in batches as they are fetched, and the engine is notified of each batch. The
fold settles a whole chain in the command that starts it; with `--asked` it settles no step: then the requests pass the
real agent of the kind, and its outcomes are the next commands. Then the same commands are decoded, folded and their
effects encoded once more, stage by stage; the rest of the agent's time is its own. Rows are encoded once a batch, which
is more often than checkpoints come. All repetitions do the same work in the same order. The best time of each stage of
each batch counts, so that other work on the machine is seldom measured with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from bridge.clock import HostClock
from ceremony.heap import collect_seldom
from ports.log import Header, Position, Record
from steps import aggregation
from steps.aggregation import Aggregation
from steps.reading import Wiring
from steps.secrets.redactor import TextRedactor
from streams.ceremony_agent import CeremonyAgent, origin_of
from streams.engine import Engine
from streams.envelope import event_record, redacted_envelopes
from streams.log_clock import LogClock
from streams.metrics import Metrics
from streams.timers import Timers
from streams.topics import CEREMONIES, COMMANDS, CORRELATION_ID, prefixed, step_topic
from streams.transport.sqlite.log import SqliteLog
from tables.commands import PutDefinition, Start, decode_command, encode_command
from tables.definition import Definition
from tables.effects import FOLD, Event, StepRequested, encode_request
from tables.fold.decide import Decision, decide
from tables.instance import Instance, encode_instance
from tables.kinds import Kinds
from tests.benchmarks.preload import PAYLOAD, STORY
from tests.benchmarks.workloads import MERGES, STEPS
from tests.steps.fakes import agent_ports
from tests.streams.fakes import MemoryBatch, MemoryView, Sent, command_record
from tests.tables.world import ASKED, KINDS

PREFIX = "bench"
# Append time of the first records, in milliseconds; as from a broker, those of a batch have one time.
BEGAN = 1_700_000_000_000
STAGES = {
    "decode": "a command out of its record",
    "decide": "the fold",
    "encode": "events and requests into records",
    "redact": "the events of a batch are looked at for secrets and raw prompts",
    "agent": "all other work of the ceremony agent",
    "applied": "metrics, timers and sweep are notified of the batch",
    "steps": "the step's agent, if asked, from request to outcome",
    "rows": "each changed row of a batch encoded once",
}


# Records of a batch: so few that some repetition of each batch has the processor to itself.
BATCH = 100


class Meter:
    """CPU seconds by stage, one entry a batch."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds[name].append(time.process_time() - began)


class Chain:
    """One run of a number of ceremonies, and its batches of commands."""

    def __init__(self, definition: Definition, kinds: Kinds, meter: Meter) -> None:
        self._meter = meter
        self._view = MemoryView()
        self._offsets = itertools.count()
        self._kinds = kinds
        clock = HostClock()
        log_clock = LogClock(clock)
        self._redactor = redactor = TextRedactor()
        self._engine = Engine(
            log=SqliteLog(Path("never-opened.db"), clock),
            unserved=dict,
            clock=clock,
            log_clock=log_clock,
            kinds=self._kinds,
            prefix=PREFIX,
            partitions=1,
            metrics=Metrics(CollectorRegistry()),
            redactor=redactor,
        )
        self._engine.timers = Timers(clock, log_clock, _nobody)
        self._agent = CeremonyAgent(self._kinds, PREFIX, log_clock, self._engine.commands.replies.expected, redactor)
        self._commands = prefixed(PREFIX, COMMANDS)
        self._step_agent = aggregation.agent(agent_ports(wiring=Wiring(self._commands, CORRELATION_ID, log_clock.now)))
        self._requests = prefixed(PREFIX, step_topic(Aggregation.name))
        self._definition = definition
        self.batches: list[Sequence[Record]] = []

    async def run(self, ceremonies: int) -> None:
        """Start all ceremonies, and fold until no step is requested any more."""
        await self._engine.taken(self._view)
        put = PutDefinition(hash=self._definition.hash, text=self._definition.text)
        self._agent.fold(MemoryBatch(self._view, [command_record(next(self._offsets), put)]))
        commands = [self._start(number) for number in range(ceremonies)]
        while commands:
            outcomes: list[Record] = []
            for records in _batched(commands, BATCH):
                outcomes += await self._serve(self._fold(records))
            commands = outcomes
        ended = sum(row.ended_at > 0 for row in self._view.rows(CEREMONIES).values())
        if ended < ceremonies:
            raise AssertionError(f"{ended} of {ceremonies} ceremonies have ended")

    def _start(self, number: int) -> Record:
        ceremony_id = f"{PREFIX}-{number}"
        instance_id = f"{ceremony_id}:{STORY}"
        start = Start(
            instance_id=instance_id,
            command_id=f"start-{number}",
            ceremony_id=ceremony_id,
            story_id=STORY,
            definition_name=self._definition.name,
            definition_hash=self._definition.hash,
            correlation_id=instance_id,
            requested_by="benchmark",
            inputs={"payload": PAYLOAD, "ceremony_id": ceremony_id, "story_id": STORY},
            inputs_size=150,
        )
        return self._record(Sent(self._commands, instance_id.encode(), encode_command(start), ()))

    def _fold(self, records: Sequence[Record]) -> Iterable[Sent]:
        """Fold a batch of commands; return the step requests that it made."""
        self.batches.append(records)
        batch = MemoryBatch(self._view, records)
        with self._meter.stage("agent"):
            self._agent.fold(batch)
        with self._meter.stage("applied"):
            self._engine.applied(batch)
        rows = [row for row in batch.rows_changed(CEREMONIES).values() if row is not None]
        with self._meter.stage("rows"):
            for row in rows:
                encode_instance(row)
        return (sent for sent in batch.sent if sent.topic == self._requests)

    async def _serve(self, requests: Iterable[Sent]) -> list[Record]:
        """Serve a batch of requests; return their outcomes."""
        batch = MemoryBatch(MemoryView(), [self._record(sent) for sent in requests])
        if not batch:
            return []
        with self._meter.stage("steps"):
            await self._step_agent(_alone(batch))
        return [self._record(sent) for sent in batch.sent]

    def _record(self, sent: Sent) -> Record:
        offset = next(self._offsets)
        return Record(sent.topic, 0, offset, BEGAN + len(self.batches), sent.key, sent.value, sent.headers)

    def repeat(self) -> None:
        """Decode, fold and encode the same commands again, stage by stage."""
        rows: dict[bytes, Instance | None] = {}
        for records in self.batches:
            with self._meter.stage("decode"):
                commands = [decode_command(record.value) for record in records]
            decisions: list[Decision] = []
            with self._meter.stage("decide"):
                for record, command in zip(records, commands, strict=True):
                    key = record.key or b""
                    decision = decide(rows.get(key), command, origin_of(record), self._definition, self._kinds)
                    rows[key] = decision.row
                    decisions.append(decision)
            with self._meter.stage("encode"):
                pairs = zip(records, decisions, strict=True)
                encoded = [_encode(record, decision) for record, decision in pairs]
            with self._meter.stage("redact"):
                events = list(itertools.chain.from_iterable(encoded))
                if list(redacted_envelopes(events, self._redactor.of(self._definition.prompts))) != events:
                    raise AssertionError("the benchmark has no secrets")


def _encode(record: Record, decision: Decision) -> list[bytes]:
    """Encode the effects of a command; return its events."""
    events = []
    for ordinal, effect in enumerate(decision.effects):
        if isinstance(effect, Event):
            events.append(event_record(effect, record.offset, ordinal, FOLD)[1])
        elif isinstance(effect, StepRequested):
            encode_request(effect)
    return events


def _batched(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    return (records[begin : begin + size] for begin in range(0, len(records), size))


async def _alone(batch: MemoryBatch) -> AsyncIterator[MemoryBatch]:
    yield batch


async def _nobody(_partition: int, _key: bytes, _value: bytes, _headers: Sequence[Header]) -> Position:
    raise AssertionError("no timer is due")


def measure(kinds: Kinds, ceremonies: int, repetitions: int) -> dict[str, float]:
    """Return µs of CPU per step, by stage. `kinds`: KINDS, or ASKED, which settle no step in the fold."""
    definition = MERGES.definition()
    meters = [_once(definition, kinds, ceremonies) for _ in range(repetitions)]
    best = {
        stage: sum(map(min, zip(*(meter.seconds[stage] for meter in meters), strict=True))) * 1e6 / (ceremonies * STEPS)
        for stage in STAGES
    }
    best["agent"] -= best["decode"] + best["decide"] + best["encode"] + best["redact"]
    return best


def _once(definition: Definition, kinds: Kinds, ceremonies: int) -> Meter:
    meter = Meter()
    chain = Chain(definition, kinds, meter)
    asyncio.run(chain.run(ceremonies))
    chain.repeat()
    return meter


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fold", description=__doc__)
    parser.add_argument("--ceremonies", type=int, default=500, help="ceremonies in a repetition (default: 500)")
    parser.add_argument(
        "--repetitions",
        type=int,
        default=15,
        help="the best time of each batch counts (default: 15)",
    )
    parser.add_argument("--asked", action="store_true", help="ask the agent of each step; settle none in the fold")
    parser.add_argument("--json", action="store_true", help="print µs by stage as one JSON object")
    options = parser.parse_args()
    collect_seldom()
    best = measure(ASKED if options.asked else KINDS, options.ceremonies, options.repetitions)
    if options.json:
        print(json.dumps(best))
    else:
        _show(best)


def _show(best: dict[str, float]) -> None:
    table = Table("stage", "work", "µs a step", show_edge=False)
    table.columns[2].justify = "right"
    for stage, what in STAGES.items():
        table.add_row(stage, what, f"{best[stage]:.2f}")
    table.add_section()
    table.add_row("all", "", f"{sum(best.values()):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
