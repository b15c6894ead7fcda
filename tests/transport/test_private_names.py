"""Every private name of Faust, mode and aiokafka that the drivers use exists; a new release may move one."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import aiokafka
import faust
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from faust.tables import TableManager
from faust.tables.base import Collection
from faust.transport.consumer import Consumer
from mode import Service
from mode.supervisors import SupervisorStrategy

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "streams" / "transport"


def source(thing: object) -> str:
    return inspect.getsource(thing)  # type: ignore[arg-type]


def test_the_versions_are_the_pinned_ones() -> None:
    assert version("faust-streaming") == "0.15.3"
    assert version("aiokafka") == "0.14.0"


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (faust.App, "_stop_consumer"),
        (faust.App, "_crash"),
        (Service, "_crash"),
        (Consumer, "_commit"),
        (Consumer, "_getmany"),
        (Consumer, "_to_message"),
        (Consumer, "_new_topicpartition"),
        (Consumer, "_seek"),
        (Consumer, "track_message"),
        (Collection, "_changelog_topic_name"),
        (Fetcher, "_create_fetch_waiter"),
        (Fetcher, "_get_actions_per_node"),
        (PartitionRecords, "_consume_aborted_up_to"),
        (PartitionRecords, "_contains_abort_marker"),
        (PartitionRecords, "_unpack_records"),
        (GroupCoordinator, "_send_req"),
        (MessageAccumulator, "_append_batch"),
        (MessageAccumulator, "create_builder"),
    ],
)
def test_overridden_and_called_methods_exist(owner: type, name: str) -> None:
    assert callable(getattr(owner, name))


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (faust.App, "_consumer"),
        (faust.App, "_assignment"),
        (Consumer, "_on_message_in"),
        (faust.Stream, "_on_stream_event_in"),
        (faust.Stream, "_on_stream_event_out"),
        (TableManager, "_tables_finalized"),
        (TableManager, "_tables_registered"),
        (SupervisorStrategy, "_index"),
        (AIOKafkaConsumer, "_client"),
        (AIOKafkaConsumer, "_fetcher"),
        (AIOKafkaConsumer, "_coordinator"),
        (AIOKafkaProducer, "_message_accumulator"),
        (Fetcher, "_prefetch_backoff"),
        (Fetcher, "_records"),
        (FetchResult, "_partition_records"),
        (PartitionRecords, "_aborted_producers"),
        (PartitionRecords, "_aborted_transactions"),
        (PartitionRecords, "_check_crcs"),
        (PartitionRecords, "_isolation_level"),
        (PartitionRecords, "_records"),
        (PartitionRecords, "_records_iterator"),
        (PartitionRecords, "_tp"),
        (PartitionRecords, "next_fetch_offset"),
        (GroupCoordinator, "_rejoin_needed_fut"),
        (MessageAccumulator, "_batches"),
        (MessageAccumulator, "_exception"),
        (MessageBatch, "_builder"),
        (MessageBatch, "_drain_waiter"),
        (MessageBatch, "_retry_count"),
        (BatchBuilder, "_builder"),
        (BatchBuilder, "_relative_offset"),
    ],
)
def test_used_attributes_exist(owner: type, attribute: str) -> None:
    assert re.search(rf"self\.{attribute}\b|^    {attribute}\b", source(owner), re.MULTILINE), attribute


def test_signatures_are_as_expected() -> None:
    assert list(inspect.signature(MessageAccumulator._append_batch).parameters) == ["self", "builder", "tp"]
    assert "self.future = " in source(MessageBatch)
    assert "                self._fetch_max_wait_ms,\n" in source(Fetcher._get_actions_per_node), "read for each fetch"
    assert "self._records[tp] = FetchResult(" in source(Fetcher), "what was fetched is unpacked where it is put there"
    assert list(inspect.signature(PartitionRecords).parameters) == [
        "tp",
        "records",
        "aborted_transactions",
        "fetch_offset",
        "key_deserializer",
        "value_deserializer",
        "check_crcs",
        "isolation_level",
    ]
    assert "self.generation = " in source(GroupCoordinator)
    assert "self.client = " in source(AIOKafkaProducer)
    assert hasattr(faust.streams, "_current_event")
    assert list(inspect.signature(aiokafka.client.AIOKafkaClient._metadata_update).parameters) == [
        "self",
        "cluster_metadata",
        "topics",
    ]


def test_only_the_transport_uses_private_names_of_faust_and_aiokafka() -> None:
    """Only modules of streams/transport/ may use their private names."""
    private = re.compile(
        r"\b(?:faust|aiokafka|mode)(?:\.\w+)* import _|\b(?:_fetcher|_coordinator|_message_accumulator)\b"
    )
    touched = [
        path.relative_to(ROOT)
        for folder in ("ports", "tables", "steps", "streams", "bridge", "ceremony")
        for path in (ROOT / folder).rglob("*.py")
        if FOLDER not in path.parents and private.search(path.read_text())
    ]
    assert touched == []
