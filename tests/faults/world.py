"""The processes of a fault run: a real Kafka, a real nats-server, the simulated Ray executor, workers and the load."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import grpc
import yaml

from tests.checker.collect import read_definitions
from tests.faults.plan import Plan
from tests.services import CLUSTER, KafkaCluster, KafkaServer, NatsServer, Server, free_port

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "specs" / "ceremonies"
CEREMONY = Path(sys.executable).with_name("ceremony")
PARTITIONS = 4
# Multiple of the step timeout.
LATE = 1.25
# Most workers at the same time.
WORKERS = 3
# A worker ends within this time after a signal.
TERM_SECONDS = 10.0
# The longest until all started ceremonies have ended, on a loaded machine.
DRAIN_SECONDS = 180.0


class FaultRunFailed(Exception):
    """A process failed the run; the message names the process and ends with its last words."""


class Program(Server):
    """A program of ours as a child with an environment of its own."""

    def __init__(self, folder: Path, environment: Mapping[str, object] | None = None) -> None:
        super().__init__(folder)
        self._environment = {"PYTHONPATH": ROOT, **(environment or {})}

    def _run(self, *command: object) -> list[str]:
        # env(1) replaces itself by the program: the process is the program's own.
        return ["env", *(f"{name}={value}" for name, value in self._environment.items()), *map(str, command)]

    @property
    def returncode(self) -> int | None:
        """None while it runs, or if `kill` or `stop` ended it."""
        return None if self._process is None else self._process.poll()

    def terminate(self, seconds: float) -> tuple[int | None, float]:
        """Send SIGTERM; return exit code and seconds. The code is None if it did not end in time and was killed."""
        if self._process is None:
            raise FaultRunFailed(f"{self.name} does not run")
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(seconds)
        took = time.monotonic() - began
        self.kill()
        return code, took


USUAL = {"failure-rate": 0.01, "duplicate-rate": 0.05, "reorder-rate": 0.1}
ODD = {
    "failure-rate": 0.03,
    "rejection-rate": 0.03,
    "duplicate-rate": 0.4,
    "reorder-rate": 0.4,
    "silence-rate": 0.03,
    "hang-rate": 0.05,
    "late-rate": 0.03,
    "oversize-rate": 0.03,
}


class RayExecutor(Program):
    """A process `python -m ceremony.dev.ray_simulation`: quick, and not always well-behaved."""

    name = "ray"

    def __init__(self, folder: Path, nats: NatsServer, seed: int, late: float) -> None:
        """`late`: delay of a late answer in seconds, beyond every step's timeout, so that it is for an old attempt."""
        super().__init__(folder)
        self._late = late
        self._nats = nats
        self._seed = seed
        self.odd = False
        """Set before a start: it is silent, repeats itself, answers late, refuses, hangs and says too much."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _command(self) -> Sequence[str]:
        knobs = {"latency": 0.5, "jitter": 0.4, **({**ODD, "late-seconds": self._late} if self.odd else USUAL)}
        told = [word for name, value in knobs.items() for word in (f"--{name}", value)]
        served = ("--grpc", self.address, "--nats", self._nats.url, "--seed", self._seed)
        return self._run(sys.executable, "-m", "ceremony.dev.ray_simulation", *served, *told)

    def _answers(self) -> bool:
        channel = grpc.insecure_channel(self.address)
        try:
            grpc.channel_ready_future(channel).result(timeout=0.5)
            return True
        except grpc.FutureTimeoutError:
            return False
        finally:
            channel.close()


def faketime() -> str | None:
    """Path of libfaketime, if it is installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return str(found[0]) if found else None


class WorkerServer(Program):
    """`ceremony serve` on fixed ports."""

    name = "worker"

    def __init__(self, folder: Path, environment: Mapping[str, object]) -> None:
        self.http_port = free_port()
        stop = {"CEREMONY_DRAIN_SECONDS": 0, "CEREMONY_STOP_SECONDS": 8}
        super().__init__(folder, {**stop, **environment, "CEREMONY_HTTP_ADDR": f"127.0.0.1:{self.http_port}"})
        self._environment["PLANNING_CEREMONY_GRPC_ADDR"] = self.address
        self._right = dict(self._environment)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _command(self) -> Sequence[str]:
        return self._run(CEREMONY, "serve")

    def set_clock(self, hours: int) -> None:
        """Let the clock be off by so many hours from the next start on."""
        self._environment = dict(self._right)
        if hours:
            told = {"LD_PRELOAD": faketime(), "FAKETIME": f"{hours:+d}h", "FAKETIME_DONT_FAKE_MONOTONIC": 1}
            self._environment |= told

    def republish(self) -> str:
        """Run `ceremony republish` on the worker's log; return its output. Raises FaultRunFailed."""
        done = subprocess.run(
            self._run(CEREMONY, "republish"), capture_output=True, text=True, timeout=DRAIN_SECONDS, check=False
        )
        if done.returncode:
            raise FaultRunFailed(f"republish ended with {done.returncode}: {done.stderr[-500:]}")
        return done.stdout.strip()

    def _answers(self) -> bool:
        status, _ = self.readiness()
        return status == 200

    def readiness(self) -> tuple[int, str]:
        """Return status and body of /readyz; 0 if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/readyz", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> str:
        """Return the text of /metrics. Raises OSError."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    def last_words(self) -> str:
        """Return the end of its log."""
        return self._last_words()


class LoadProcess:
    """A process `python -m tests.faults.load`; ends by itself some time after `finish`."""

    def __init__(
        self, addresses: Sequence[str], starts: Path, *, rate: float, look: float, seed: int, name: str, log: IO[Any]
    ) -> None:
        told: list[object] = [word for address in addresses for word in ("--address", address)]
        told += [
            "--starts",
            starts,
            "--rate",
            rate,
            "--look",
            look,
            "--seed",
            seed,
            "--name",
            name,
            "--drain",
            DRAIN_SECONDS,
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.load", *map(str, told)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> dict[str, Any]:
        """Start no more, wait until all started ceremonies have ended, and return the summary."""
        said, _ = self._process.communicate(timeout=DRAIN_SECONDS + 30)
        if self._process.returncode or not said:
            raise FaultRunFailed(f"the load ended with {self._process.returncode}; see its log")
        return dict(json.loads(said.splitlines()[-1]))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class World:
    """All processes of a run: `with World(...)` starts them and ends them."""

    def __init__(self, folder: Path, plan: Plan, kafka: KafkaServer | KafkaCluster) -> None:
        self.folder = folder.absolute()
        self.plan = plan
        self.kafka = kafka
        self.nats = NatsServer(self.folder / "nats")
        self.ray = RayExecutor(self.folder / "ray", self.nats, plan.seed, LATE * plan.step_timeout)
        self.starts = self.folder / "starts.jsonl"
        self._definitions = self.folder / "ceremonies"
        self.prefix = f"faults-{self.folder.name}-{os.getpid()}"
        environment = {
            "CEREMONY_LOG": f"kafka://{kafka.bootstrap}",
            "CEREMONY_TOPIC_PREFIX": self.prefix,
            "CEREMONY_REPLICATION_FACTOR": CLUSTER if isinstance(kafka, KafkaCluster) else 1,
            "CEREMONY_PARTITIONS": PARTITIONS,
            "CEREMONY_TAKE_OVER_GRACE_SECONDS": 2,
            "CEREMONIES_DIR": self._definitions,
            "NATS_URL": self.nats.url,
            "RAY_EXECUTOR_URL": self.ray.address,
            "RAY_CALL_TIMEOUT_SECONDS": 3,
        }
        self.workers = [WorkerServer(self.folder / f"worker-{n}", environment) for n in range(1, WORKERS + 1)]
        self.worker = self.workers[0]
        """The one that serves now."""
        self._loads: list[LoadProcess] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.starts.touch()
        write_definitions(self._definitions, self.plan.step_timeout)
        try:
            for server in (self.nats, self.ray, self.worker):
                server.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for load in self._loads:
            load.kill()
        for server in (*self.workers, self.ray, self.nats):
            server.kill()

    def definitions(self) -> dict[str, str]:
        return read_definitions(self._definitions)

    def load(self, name: str) -> LoadProcess:
        """Begin to load all workers."""
        with (self.folder / "load.log").open("a") as log:
            load = LoadProcess(
                [worker.address for worker in self.workers],
                self.starts,
                rate=self.plan.starts_per_second,
                look=self.plan.look,
                seed=self.plan.seed,
                name=name,
                log=log,
            )
        self._loads.append(load)
        return load


def write_definitions(folder: Path, step_timeout: float) -> None:
    """Write the example ceremonies with shorter step timeouts, so that a lost answer is requested again in time."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in SPECS.glob("*.yaml"):
        data = yaml.safe_load(path.read_text())
        data["timeouts"] = {**data.get("timeouts", {}), "step_default": int(step_timeout)}
        for step in data["steps"]:
            if "timeout_seconds" in step:
                step["timeout_seconds"] = int(step_timeout)
        (folder / path.name).write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
