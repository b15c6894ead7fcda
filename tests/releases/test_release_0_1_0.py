"""Release 0.1.0 against the engine of today: its log folds to the same rows, its protos and its file can be read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.releases.archive import DRIVERS, ArchivedLog, ArchivedRecord, release
from tests.releases.folding import Folded, fold

ARCHIVE = release("0.1.0")
STEP_TOPICS = ("steps.deliberation", "steps.task_extraction", "steps.aggregation", "steps.human_gate", "steps.publish")


@pytest.fixture(params=DRIVERS, scope="module")
def log(request: pytest.FixtureRequest) -> ArchivedLog:
    return ARCHIVE.log(request.param)


@pytest.fixture(scope="module")
def folded(log: ArchivedLog) -> Iterator[Folded]:
    with structlog.testing.capture_logs():
        yield fold(log)


def comparable(record: ArchivedRecord) -> tuple[object, ...]:
    return record.topic, record.partition, record.key, record.value, record.headers


@pytest.mark.parametrize("topic", ["events", *STEP_TOPICS])
def test_the_commands_fold_to_the_archived_effects(log: ArchivedLog, folded: Folded, topic: str) -> None:
    """Same effects in the same order: keys, values and headers to the byte, effect ids among them."""
    assert [tuple(one) for one in folded.of(topic)] == [comparable(one) for one in log.records(topic)]


def test_the_commands_fold_to_the_archived_rows(log: ArchivedLog, folded: Folded) -> None:
    assert folded.ceremonies == log.newest("ceremonies")
    assert folded.definitions == log.newest("definitions")


def test_every_row_that_a_checkpoint_wrote_is_a_version_of_the_fold(log: ArchivedLog, folded: Folded) -> None:
    for record in log.records("ceremonies.changelog"):
        if record.key is not None and not record.key.startswith(b"\0"):
            assert (record.value or b"") in folded.history[record.key]
