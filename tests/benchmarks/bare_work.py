"""The reads and writes of a bare loop: the records that a number of ceremonies leave in the engine's log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from aiokafka import ConsumerRecord

from streams.transport.partition.backend import NewRecord
from tests.benchmarks.sizes import CeremonyRecords, Records, RecordSize

# A value and its headers.
Template = tuple[bytes, list[tuple[str, bytes]]]


class Options(msgspec.Struct, kw_only=True):
    """Options of one measurement."""

    bootstrap: str
    name: str
    """Prefix of topics and group."""
    ceremonies: int
    partitions: int
    batches: bool
    """Write with `create_batch`/`send_batch`, one future per batch, instead of `send`, one per record."""
    records: CeremonyRecords
    topic_config: dict[str, str] = {}
    processes: int = 1
    """Loops that share the partitions, evenly."""
    share: int | None = None
    """Number of this process among them; None for the process that prepares all and starts them."""

    @property
    def mine(self) -> range:
        return range(self.share or 0, self.partitions, self.processes)

    @property
    def outputs(self) -> list[str]:
        """Topics that the loops write."""
        return [topic for given in self.inputs for topic, records in given.writes if records.each]

    @property
    def inputs(self) -> list[Input]:
        """Topics with records to read."""
        of = self.records
        commands = Input(
            f"{self.name}.in.commands",
            [of.starts, of.outcomes],
            [(f"{self.name}.out.events", of.events), (f"{self.name}.out.requests", of.requests)],
        )
        requests = Input(f"{self.name}.in.requests", [of.requests], [(f"{self.name}.out.outcomes", of.outcomes)])
        return [commands, requests] if requests.each else [commands]


class Input(NamedTuple):
    """A topic that the loops read, and the writes that its records cause."""

    topic: str
    holds: list[Records]
    """Sorts of records, in their order in the topic."""
    writes: list[tuple[str, Records]]
    """Topics and records to write, spread evenly over the records read."""

    @property
    def each(self) -> int:
        """Number of records of one ceremony."""
        return sum(records.each for records in self.holds)


class Output:
    """The records that are written for those of one input."""

    def __init__(self, topic: str, read: int, records: Records) -> None:
        """`read`: number of records of the input in one ceremony."""
        self.topic = topic
        self._read = read
        self._written = records.each
        self._value, self._headers = template(records.size)

    def caused_by(self, records: Sequence[ConsumerRecord], before: int) -> list[NewRecord]:
        """Return the writes for `records`, with `before` read earlier. At the end of a ceremony none is missing."""
        count, of = self._due(before + len(records)) - self._due(before), len(records)
        return [NewRecord(records[number * of // count].key, self._value, self._headers) for number in range(count)]

    def _due(self, read: int) -> int:
        return read * self._written // self._read


def ceremonies_of(partition: int, options: Options) -> range:
    """Numbers of the ceremonies in this partition."""
    return range(partition, options.ceremonies, options.partitions)


def template(size: RecordSize) -> Template:
    return b"x" * size.value, [(name, b"x" * length) for name, length in size.headers]
