"""A worker whose Kafka is not up yet, never comes up, or has gone."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.faults.world import TERM_SECONDS, WorkerServer, write_definitions
from tests.services import KafkaServer, free_port, running

pytestmark = pytest.mark.timeout(120)
PATIENCE = 30.0


def worker_before(folder: Path, kafka: KafkaServer) -> WorkerServer:
    """Start a worker on an address without a Kafka; it is ready without NATS and the Ray executor."""
    write_definitions(folder / "ceremonies", 60)
    environment = {
        "CEREMONY_LOG": f"kafka://{kafka.bootstrap}",
        "CEREMONY_PARTITIONS": 2,
        "CEREMONIES_DIR": folder / "ceremonies",
        "NATS_URL": f"nats://127.0.0.1:{free_port()}",
        "RAY_EXECUTOR_URL": f"127.0.0.1:{free_port()}",
        "READINESS_REQUIRES": "log,tables",
    }
    return WorkerServer(folder / "worker", environment)


def waits(worker: WorkerServer, kafka: KafkaServer) -> None:
    """Return once the worker's readiness names the Kafka that it waits for."""
    deadline = time.monotonic() + PATIENCE
    while True:
        status, body = worker.readiness()
        if status == 503 and json.loads(body)["neighbours"]["log"]["state"] == f"no Kafka at {kafka.bootstrap}":
            return
        assert worker.returncode is None, worker.last_words()
        assert time.monotonic() < deadline, (status, body, worker.last_words())
        time.sleep(0.05)


def test_a_worker_waits_for_its_kafka_and_ends_without_it(tmp_path: Path) -> None:
    """Readiness names the missing Kafka, the log names it once, and nobody has to start the worker again.

    With Kafka gone there is no last checkpoint; the worker still ends in time.
    """
    # specification 18.8, 22.5
    kafka = KafkaServer(tmp_path / "kafka")
    worker = worker_before(tmp_path, kafka)
    worker.launch()
    try:
        waits(worker, kafka)
        time.sleep(2)  # some more attempts
        about_kafka = [line for line in worker.log.read_text().splitlines() if str(kafka.port) in line]
        assert len(about_kafka) == 1, about_kafka
        assert "neighbour_fails" in about_kafka[0] and "log_unavailable" in about_kafka[0]
        with running(kafka):
            worker.wait_ready()
            kafka.kill()
            code, took = worker.terminate(TERM_SECONDS)
        assert code == 0, f"exit code {code} after {took:.1f} s: {worker.last_words()}"
    finally:
        worker.kill()


@pytest.mark.uncounted
def test_a_signal_ends_the_waiting(tmp_path: Path) -> None:
    kafka = KafkaServer(tmp_path / "kafka")
    signals = (signal.SIGTERM, signal.SIGINT)
    workers = [worker_before(tmp_path / number.name, kafka) for number in signals]
    try:
        for worker in workers:
            worker.launch()
        for worker, number in zip(workers, signals, strict=True):
            waits(worker, kafka)
            worker._signal(number)
            deadline = time.monotonic() + TERM_SECONDS
            while worker.returncode is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert worker.returncode == 0, (number, worker.last_words())
            assert "Traceback" not in worker.log.read_text()
    finally:
        for worker in workers:
            worker.kill()
