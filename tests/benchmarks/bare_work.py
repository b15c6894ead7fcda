"""What a bare loop reads and writes: the records that so many ceremonies leave in the engine's log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from aiokafka import ConsumerRecord

from streams.transport.partition.backend import Out
from tests.benchmarks.sizes import CeremonyRecords, Records, RecordSize

# Value and headers.
Template = tuple[bytes, list[tuple[str, bytes]]]


class Options(msgspec.Struct, kw_only=True):
    """What is to be measured."""

    bootstrap: str
    name: str
    """Prefix of its topics and group."""
    ceremonies: int
    partitions: int
    batches: bool
    """Write with `create_batch`/`send_batch`, one future per batch, instead of `send`, one per record."""
    records: CeremonyRecords
    topic_config: dict[str, str] = {}
    processes: int = 1
    """Loops that share the partitions, evenly."""
    share: int | None = None
    """Which of them this process is; None: the one that prepares all and starts them."""

    @property
    def mine(self) -> range:
        return range(self.share or 0, self.partitions, self.processes)

    @property
    def outputs(self) -> list[str]:
        """Topics that are written."""
        return [topic for given in self.inputs for topic, records in given.writes if records.each]

    @property
    def inputs(self) -> list[Input]:
        """What is read; of a topic where there is nothing to read, nothing."""
        of = self.records
        commands = Input(
            f"{self.name}.in.commands",
            [of.starts, of.outcomes],
            [(f"{self.name}.out.events", of.events), (f"{self.name}.out.requests", of.requests)],
        )
        requests = Input(f"{self.name}.in.requests", [of.requests], [(f"{self.name}.out.outcomes", of.outcomes)])
        return [commands, requests] if requests.each else [commands]


class Input(NamedTuple):
    """A topic that is read, and what its records cause."""

    topic: str
    holds: list[Records]
    """In this order."""
    writes: list[tuple[str, Records]]
    """Topics and records that are written, evenly over what is read."""

    @property
    def each(self) -> int:
        """Records of one ceremony."""
        return sum(records.each for records in self.holds)


class Output:
    """Records that are written for those of one input."""

    def __init__(self, topic: str, read: int, records: Records) -> None:
        """`read`: records of the input in one ceremony."""
        self.topic = topic
        self._read = read
        self._written = records.each
        self._value, self._headers = template(records.size)

    def caused_by(self, records: Sequence[ConsumerRecord], before: int) -> list[Out]:
        """`before`: so many records of the partition were read earlier. By the end of a ceremony none is missing."""
        count, of = self._due(before + len(records)) - self._due(before), len(records)
        return [Out(records[number * of // count].key, self._value, self._headers) for number in range(count)]

    def _due(self, read: int) -> int:
        return read * self._written // self._read


def ceremonies_of(partition: int, options: Options) -> range:
    """Numbers of the ceremonies whose records are in this partition."""
    return range(partition, options.ceremonies, options.partitions)


def template(size: RecordSize) -> Template:
    return b"x" * size.value, [(name, b"x" * length) for name, length in size.headers]
