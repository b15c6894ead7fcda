"""The short form: every kind of fault once, under load, on a real Kafka, NATS and gRPC; `scripts/faults` does more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.plan import SHORT, Fault
from tests.faults.run import FaultRun, Verdict
from tests.services import KafkaServer

pytestmark = [pytest.mark.timeout(400), pytest.mark.uncounted]  # the first test waits for all faults


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[Fault, Verdict]:
    """Results of one run of the short form, on a broker of its own."""
    folder = tmp_path_factory.mktemp("faults")
    kafka = KafkaServer(folder / "kafka")
    kafka.start()
    try:
        run = FaultRun(replace(SHORT, seed=20_261), folder / "run", kafka, print)
        return {verdict.fault: verdict for verdict in run.run(SHORT.faults)}
    finally:
        kafka.kill()


@pytest.mark.parametrize("fault", SHORT.faults, ids=lambda fault: fault.name.lower())
def test_every_accepted_start_is_accounted_for(fault: Fault, verdicts: dict[Fault, Verdict]) -> None:
    """Each has ended or visibly waits, on a path of its definition, with each effect id once and in order."""
    # specification 18.1, 18.5
    verdict = verdicts[fault]
    assert verdict.violations == []
    assert verdict.problems == []
    assert verdict.starts > 20, "hardly any load: this proves nothing"
    assert sum(verdict.ended.values()) == verdict.starts


@pytest.mark.parametrize("fault", SHORT.faults, ids=lambda fault: fault.name.lower())
def test_starts_and_events_come_again_afterwards(fault: Fault, verdicts: dict[Fault, Verdict]) -> None:
    """The engine recovers from the last blow while the load still runs."""
    last = verdicts[fault].struck[-1]
    assert last.first_start is not None
    assert last.first_event is not None
