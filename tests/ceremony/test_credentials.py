"""No setting's password leaves a worker: not in errors, logs, readiness, diagnosis, or the list of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub

from bridge.clock import HostClock
from bridge.nats.connection import NatsConnection
from bridge.nats.urls import NatsUrlInvalid, server_urls
from ceremony.errors import SettingsInvalid
from ceremony.process_list import split
from ceremony.settings import Settings, read_settings
from ports.masking import masked, masked_address, masked_urls
from tests.services import free_port

ROOT = Path(__file__).parents[2]
SECRET = "hunter2"
# Settings that take any text; they are shown nowhere (`test_a_running_worker_shows_no_password_anywhere`).
ANY_TEXT = {
    "CEREMONIES_DIR",
    "CEREMONY_STATE_DIR",
    "NEO4J_DATABASE",
    "NEO4J_PASSWORD",
    "NEO4J_USER",
    "VALKEY_PASSWORD",
    "VLLM_MODEL",
    "VLLM_URL",
    "WORKER_ID",
}
# Settings that are read only where another one turns their store on.
TURNED_ON_BY = {"VALKEY_PASSWORD_FILE": ("VALKEY_HOST", "valkey"), "NEO4J_PASSWORD_FILE": ("NEO4J_URI", "bolt://neo4j")}
VARIABLES = sorted({str(field.alias) for field in Settings.model_fields.values()} - ANY_TEXT)
PLANTED = (f"user:{SECRET}@no where", f"user:{SECRET}@h:1:2 x", f"x ://user:{SECRET}@h..:1")


@pytest.mark.parametrize("text", PLANTED)
@pytest.mark.parametrize("variable", VARIABLES)
def test_an_error_about_a_setting_shows_no_password(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 22.13
    monkeypatch.setenv(variable, text)
    if variable in TURNED_ON_BY:
        monkeypatch.setenv(*TURNED_ON_BY[variable])
    with pytest.raises(SettingsInvalid) as caught:
        read_settings({})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{variable}: ") and SECRET not in problem and "\n" not in problem


@pytest.mark.parametrize(
    "text",
    [
        f"nats://user:{SECRET}@host:notaport",
        f"nats://user:{SECRET}@host:99999999",
        f"nats://user:{SECRET}/x@host:4222",
        f"nats://user:{SECRET}@",
        f"http://user:{SECRET}@host:4222",
        f"nats://user:{SECRET}@[::1",
        f"nats://user:{SECRET} @host",
        "",
        " , ",
    ],
)
def test_a_malformed_address_of_nats_ends_the_worker_with_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 22.2, 22.12
    monkeypatch.setenv("NATS_URL", text)
    with pytest.raises(SettingsInvalid) as caught:
        read_settings({})
    (problem,) = caught.value.problems
    assert problem.startswith("NATS_URL: ") and SECRET not in problem
    with pytest.raises(NatsUrlInvalid) as refused:
        NatsConnection(text, HostClock())
    assert SECRET not in str(refused.value)


def test_sound_addresses_of_nats_are_taken() -> None:
    text = "nats://nats:4222, user:p%40ss@a:4222,tls://b,ws://[::1]:80/,10.0.0.1"
    assert server_urls(text) == ["nats://nats:4222", "user:p%40ss@a:4222", "tls://b", "ws://[::1]:80/", "10.0.0.1"]


@pytest.mark.parametrize("text", ["ray:50056", "10.0.0.1:1", "[::1]:50056", "dns:///ray:50056", "unix:/tmp/x"])
def test_targets_of_grpc_are_taken_for_the_ray_executor(text: str) -> None:
    assert read_settings({"ray_executor_url": text}).ray_executor_url == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"nats://user:{SECRET}@h:4222", "nats://***@h:4222"),
        (f"nats://a:{SECRET}@h1,nats://b:{SECRET}@h2:1", "nats://***@h2:1"),
        (f"connecting to kafka://{SECRET}@h:9092 failed", "connecting to kafka://***@h:9092 failed"),
        (f"user:{SECRET}@ray:50056 gave no answer", "***@ray:50056 gave no answer"),
        (f"(it is 'user:{SECRET}@10.0.0.1:1')", "(it is '***@10.0.0.1:1')"),
        ("effect c1:s1/2/1@3 of a@b.example", "effect c1:s1/2/1@3 of a@b.example"),
        ("sqlite:///data/a@b.db", "sqlite:///data/a@b.db"),
    ],
)
def test_user_and_password_of_an_address_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert SECRET not in masked_urls(text) or "://" not in text


def test_an_address_is_masked_without_scheme_and_colon_too() -> None:
    assert masked_address(f"{SECRET}@ray:50056") == "***@ray:50056"
    assert masked_address(f"dns:///{SECRET}") == f"dns:///{SECRET}"
    assert masked_address("ray:50056") == "ray:50056"


def test_options_with_a_password_become_variables_of_the_process() -> None:
    # specification 22.13
    given = [
        "republish",
        f"--nats=nats://u:{SECRET}@h",
        "--log",
        "kafka://h:1",
        "--log",
        f"kafka://u:{SECRET}@h:1",
        "x",
    ]
    kept, moved = split(given)
    assert kept == ["republish", "--log", "kafka://h:1", "x"]
    assert moved == {"NATS_URL": f"nats://u:{SECRET}@h", "CEREMONY_LOG": f"kafka://u:{SECRET}@h:1"}


def test_a_running_worker_shows_no_password_anywhere(tmp_path: Path) -> None:
    # specification 22.13
    grpc_port, http_port, nowhere = free_port(), free_port(), free_port()
    environment = {
        **os.environ,
        "CEREMONY_LOG": f"sqlite://{tmp_path}/log.db",
        "WORKER_ID": f"user:{SECRET}@h",
        "VLLM_MODEL": f"user:{SECRET}@h",
        "CEREMONY_STATE_DIR": f"{tmp_path}/user:{SECRET}@h",
        "NATS_URL": f"nats://user:{SECRET}@127.0.0.1:{nowhere}",
        "RAY_EXECUTOR_URL": f"user:{SECRET}@127.0.0.1:{nowhere}",
        "VLLM_URL": f"http://user:{SECRET}@127.0.0.1:{nowhere}",
        "VALKEY_HOST": "127.0.0.1",
        "VALKEY_PORT": str(nowhere),
        "VALKEY_PASSWORD": f"user:{SECRET}@h",
        "NEO4J_URI": f"bolt://127.0.0.1:{nowhere}",
        "NEO4J_USER": f"user:{SECRET}@h",
        "NEO4J_PASSWORD": f"user:{SECRET}@h",
        "NEO4J_DATABASE": f"user:{SECRET}@h",
        "PLANNING_CEREMONY_GRPC_ADDR": f"127.0.0.1:{grpc_port}",
        "CEREMONY_HTTP_ADDR": f"127.0.0.1:{http_port}",
        "CEREMONIES_DIR": str(tmp_path),
        "LOG_LEVEL": "DEBUG",
    }
    command = [sys.executable, "-m", "ceremony_engine", "serve"]
    lines = tmp_path / "stderr"
    with lines.open("w") as errors, subprocess.Popen(command, cwd=ROOT, env=environment, stderr=errors) as worker:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
                stub = PlanningCeremonyProcessorStub(channel)
                diagnosis = stub.Diagnose(pb.DiagnoseRequest(), timeout=30, wait_for_ready=True)
            readiness = read(http_port, "/readyz", until="gave no answer")
            metrics = read(http_port, "/metrics")
            processes = Path(f"/proc/{worker.pid}/cmdline").read_text()
        finally:
            worker.terminate()
            worker.wait(30)
    for shown in (str(diagnosis), readiness, metrics, processes, lines.read_text()):
        assert SECRET not in shown
    assert "ray_executor" in readiness and "ray_unreachable" in lines.read_text()


def read(port: int, path: str, until: str = "") -> str:
    text = ""
    for _ in range(100):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            text = error.read().decode()
        if until in text:
            return text
        time.sleep(0.1)
    raise AssertionError(text)


def test_a_malformed_setting_ends_serve_with_one_line_and_without_a_traceback() -> None:
    # specification 22.2, 22.12
    command = [sys.executable, "-m", "ceremony_engine", "serve", "--log", f"kafka://user:{SECRET}@h:9092:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("setting_invalid: CEREMONY_LOG: ") and SECRET not in line
