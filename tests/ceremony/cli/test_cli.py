"""The command line without an engine: files, exit codes, and errors that are one line."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import grpc
import pytest
import yaml
from fleet.planning_ceremony.client import PlanningCeremonyError
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from ceremony.cli.connection import server
from ceremony.cli.display import NARROWEST, console
from ceremony.cli.errors import Exit, refused
from ceremony.cli.running import Stop
from ceremony.cli.views import in_words
from ceremony.cli.watch import forms
from ceremony.demo.engine import PROGRAM
from ceremony.program import run
from ceremony.settings import read_settings
from tests.dev_process import CEREMONIES, ROOT_FOLDER, alive, ceremony

pytestmark = pytest.mark.timeout(60)

BROKEN = """\
version: "1.0"
name: other
description: Broken in two ways
states:
  - {id: A, description: a, initial: true}
  - {id: B, description: b, terminal: true}
transitions:
  - {from: A, to: NOWHERE, trigger: go, description: goes}
"""


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in which no engine was ever started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CEREMONY_SERVER", raising=False)
    return tmp_path


def test_the_help_names_every_verb_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """A reader of `--help` finds everything."""
    # specification 23.1
    assert run(["--help"]) == Exit.OK
    said = " ".join(capsys.readouterr().out.split())
    verbs = (
        "serve dev demo republish rebuild reconcile validate graph init schema start get list watch approve reject"
        " trigger deadletters definitions"
    )
    assert [verb for verb in verbs.split() if f" {verb} " not in said] == []
    assert "Repair: republish" in said
    assert "Exit codes: 0 ok · 1 refused or failed · 2 wrong usage" in said


@pytest.mark.parametrize("verb", ["start", "get", "list", "watch", "approve", "reject", "trigger", "demo", "dev"])
def test_each_verb_has_its_own_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the declaration of an option would show here."""
    assert run([verb, "--help"]) == Exit.OK
    assert f"ceremony {verb}" in capsys.readouterr().out


def test_the_exit_codes_are_fixed() -> None:
    # specification 23.1
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "UNAVAILABLE": 3,
        "NOT_FOUND": 4,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["start"],
        ["get"],
        ["list", "-o", "xml"],
        ["dev", "--latency", "-1"],
        ["get", "a:b", "--server", "x"],
    ],
)
def test_wrong_usage_is_exit_2(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is done, and stdout stays empty."""
    # specification 23.1
    assert run(arguments) == Exit.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("given", ["title", "=x", "a=1"])
def test_an_input_must_be_a_name_and_a_value_once(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed or repeated input is refused, so that no value is lost silently."""
    arguments = ["start", "d", "--ceremony-id", "c", "--story-id", "s", "--input", given, "--input", "a=2"]
    assert run(arguments) == Exit.USAGE
    assert "--input" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[1]", '{"a": '], ids=["empty", "a list", "cut off"])
def test_a_file_of_inputs_must_hold_an_object(text: str, nobody: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before anything is sent."""
    (nobody / "x.json").write_text(text)
    arguments = ["start", "d", "--ceremony-id", "c", "--story-id", "s", "--inputs-file", "x.json"]
    assert run(arguments) == Exit.USAGE
    assert "x.json" in capsys.readouterr().err


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize(
    "arguments",
    [["get", "c:s"], ["list"], ["watch", "c:s"], ["approve", "c:s"], ["trigger", "c:s", "go"], ["definitions"],
     ["deadletters", "list"], ["start", "d", "--ceremony-id", "c", "--story-id", "s"]],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_without_an_engine_every_verb_fails_with_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 3 at once, with the address and the remedy."""
    # specification 23.1, 23.2
    assert run([*arguments, "--server", "127.0.0.1:1"]) == Exit.UNAVAILABLE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("unavailable: nothing answers at 127.0.0.1:1; start one with `ceremony dev`")
    assert said.err.count("\n") == 1


def test_the_server_is_the_given_one_else_the_dev_of_the_folder_else_the_default(nobody: Path) -> None:
    """If that `dev` has ended, the error names it."""
    # specification 23.4
    assert server(None).address == "localhost:50057"
    (nobody / ".ceremony").mkdir()
    (nobody / ".ceremony/dev.json").write_text(json.dumps({"grpc": "127.0.0.1:7", "pid": os.getpid()}))
    assert server(None).address == "127.0.0.1:7"
    assert server("elsewhere:1").address == "elsewhere:1"
    child = subprocess.Popen(["true"])
    child.wait()
    (nobody / ".ceremony/dev.json").write_text(json.dumps({"grpc": "127.0.0.1:7", "pid": child.pid}))
    assert "has ended" in server(None).source
    (nobody / ".ceremony/dev.json").write_text("not json")
    assert server(None).address == "localhost:50057"


def test_valid_definitions_are_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder stands for all its files."""
    # specification 23.1, 23.5
    assert run(["validate", str(CEREMONIES)]) == Exit.OK
    said = capsys.readouterr()
    assert "backlog_review.yaml: valid (5 states, 7 steps)" in said.out
    assert len(said.out.splitlines()) == len(list(CEREMONIES.glob("*.yaml")))


def test_an_invalid_definition_is_exit_1_with_every_reason_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reason has file, line, rule and remedy. Valid files beside it are still listed."""
    # specification 2.15, 23.5
    (tmp_path / "broken.yaml").write_text(BROKEN)
    (tmp_path / "good.yaml").write_text(
        (CEREMONIES / "approval.yaml").read_text().replace("name: approval", "name: good")
    )
    assert run(["validate", str(tmp_path)]) == Exit.FAILED
    said = capsys.readouterr()
    assert f"{tmp_path}/broken.yaml:2: name_mismatch: " in said.err
    assert f"{tmp_path}/broken.yaml:8: " in said.err
    assert said.err.splitlines()[-1] == "definition_invalid: 1 of 2 definitions are invalid"
    assert "good.yaml: valid" in said.out


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_reasons_are_also_printed_as_data(
    form: str, read: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs get the same reasons on stdout; stderr is empty."""
    # specification 23.3
    assert callable(read)
    (tmp_path / "broken.yaml").write_text(BROKEN)
    assert run(["validate", str(tmp_path), "-o", form]) == Exit.FAILED
    said = capsys.readouterr()
    assert said.err == ""
    found = read(said.out)
    assert found["valid"] is False
    assert {"file": f"{tmp_path}/broken.yaml", "line": 2, "rule": "name_mismatch"}.items() <= found["files"][0][
        "problems"
    ][0].items()


def test_a_missing_file_is_not_a_valid_definition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither is a folder without one: a check of nothing must not succeed."""
    assert run(["validate", str(tmp_path / "none.yaml")]) == Exit.FAILED
    assert run(["validate", str(tmp_path)]) == Exit.FAILED
    assert capsys.readouterr().err.count("file_missing") == 2


@pytest.mark.parametrize(
    ("form", "begins"), [("text", "backlog_review · "), ("mermaid", "flowchart TD"), ("dot", "digraph")]
)
def test_a_definition_is_drawn_in_three_ways(form: str, begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the drawing is on stdout, so that it can be piped."""
    # specification 23.5
    assert run(["graph", str(CEREMONIES / "backlog_review.yaml"), "--format", form]) == Exit.OK
    said = capsys.readouterr().out
    assert begins in said
    assert "deliberate_qa" in said


def test_a_file_that_the_engine_does_not_look_for_is_invalid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # specification 2.1, 23.5
    (tmp_path / "approval.yml").write_text((CEREMONIES / "approval.yaml").read_text())
    assert run(["validate", str(tmp_path)]) == Exit.FAILED
    assert "approval.yml:1: file_name_invalid: the engine reads only files called .yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "environment", "code", "shown"),
    [
        ([], None, Exit.OK, ": warning: subject_not_allowed: step `publish_approval`"),
        (["--publish-subjects", "fleet.>"], None, Exit.OK, ""),
        (["--publish-subjects", "ceremony.>"], None, Exit.FAILED, ": subject_not_allowed: step `publish_approval`"),
        ([], "ceremony.>, other.*", Exit.FAILED, ": subject_not_allowed: step `publish_approval`"),
        ([], "fleet.>", Exit.OK, ""),
        (["--publish-subjects", "a..b"], None, Exit.USAGE, "is no NATS subject pattern"),
    ],
)
def test_validate_takes_the_allowlist_of_the_server_into_account(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    environment: str | None,
    code: Exit,
    shown: str,
) -> None:
    """A subject outside it can never work; without a list, one outside the default is a warning."""
    # specification 9.4, 23.5
    text = (CEREMONIES / "backlog_review.yaml").read_text()
    text = text.replace("subject: ceremony.backlog_review.reviewed", "subject: fleet.reviewed")
    (tmp_path / "backlog_review.yaml").write_text(text)
    monkeypatch.delenv("PUBLISH_SUBJECTS", raising=False)
    if environment is not None:
        monkeypatch.setenv("PUBLISH_SUBJECTS", environment)
    assert run(["validate", str(tmp_path), *options]) == code
    said = capsys.readouterr().err
    assert shown.replace("publish_approval", "publish_review") in said
    assert shown or "subject_not_allowed" not in said


def test_a_warning_is_shown_and_does_not_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # specification 2.14, 23.5
    roles = "roles:\n  - {id: SOMEBODY, description: may nothing}\n"
    (tmp_path / "approval.yaml").write_text((CEREMONIES / "approval.yaml").read_text() + roles)
    assert run(["validate", str(tmp_path)]) == Exit.OK
    shown = capsys.readouterr()
    assert ": warning: role_not_allowed: " in shown.err
    assert "approval.yaml: valid" in shown.out


class RestartedEngine:
    """A client whose stream breaks with UNAVAILABLE after each version but the last."""

    def __init__(self, versions: Sequence[int]) -> None:
        self._versions = iter(versions)

    async def watch(self, _instance_id: str) -> AsyncIterator[pb.PlanningCeremonyInstance]:
        for version in self._versions:
            yield pb.PlanningCeremonyInstance(version=version)
            raise PlanningCeremonyError(grpc.StatusCode.UNAVAILABLE, "unavailable: it restarts")


async def test_watching_survives_restarts_of_the_engine_and_shows_each_version_once() -> None:
    # specification 23.6
    client: Any = RestartedEngine([1, 1, 3])
    assert [found.version async for found in forms(client, "c:s")] == [1, 3]


def test_an_invalid_definition_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reasons are printed instead."""
    (tmp_path / "broken.yaml").write_text(BROKEN)
    assert run(["graph", str(tmp_path / "broken.yaml")]) == Exit.FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert "name_mismatch" in said.err


def test_wrong_settings_are_one_line_for_each_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All wrong settings are listed at once, by the names of their variables."""
    # specification 22.2
    monkeypatch.setenv("CEREMONY_PARTITIONS", "many")
    monkeypatch.setenv("READINESS_REQUIRES", "luck")
    assert run(["serve"]) == Exit.FAILED
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in sorted(lines)] == [
        ["setting_invalid", "CEREMONY_PARTITIONS"],
        ["setting_invalid", "READINESS_REQUIRES"],
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--grpc-addr", "here"], "setting_invalid: PLANNING_CEREMONY_GRPC_ADDR: expected host:port"),
        (["--role", "engine,projector"], "setting_invalid: CEREMONY_ROLE: a projector needs a store"),
        (["--role", "king"], "setting_invalid: CEREMONY_ROLE: unknown: king; one or more of engine, bridge, projector"),
        (["--http-addr", "1.2.3.4:99999"], "setting_invalid: CEREMONY_HTTP_ADDR: expected host:port"),
        (["--log", "redis://x"], "setting_invalid: CEREMONY_LOG: expected kafka://"),
    ],
)
def test_a_worker_that_cannot_start_prints_the_reason(
    options: list[str], line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 with the reason in one line, never a traceback."""
    # specification 23.2
    assert run(["serve", *options]) == Exit.FAILED
    said = capfd.readouterr().err
    assert line in said
    assert "Traceback" not in said


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option on the command line is the most deliberate setting."""
    # specification 22.2
    monkeypatch.setenv("CEREMONY_LOG", "kafka://a:1")
    assert read_settings({}).log == "kafka://a:1"
    assert read_settings({"log": "kafka://b:2"}).log == "kafka://b:2"


def test_refusals_keep_the_engines_code_and_hide_sockets() -> None:
    """Messages of gRPC itself name sockets, which do not help a user."""
    assert str(refused("NOT_FOUND", "unknown_instance: there is no ceremony 'x'")) == (
        "unknown_instance: there is no ceremony 'x'"
    )
    lost = refused("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1")
    assert (lost.code, lost.exit_code) == ("unavailable", Exit.UNAVAILABLE)
    assert "ipv4" not in lost.message
    assert refused("DEADLINE_EXCEEDED", "Deadline Exceeded").exit_code == Exit.UNAVAILABLE
    assert refused("INVALID_ARGUMENT", "").message


def test_reading_a_ceremony_does_not_load_the_worker() -> None:
    """Nor Faust, NATS and the tables: loading them takes longer than the answer."""
    code = (
        "import sys; from ceremony.program import run;"
        "run(['get', 'a:b', '--server', '127.0.0.1:1']);"
        "print([m for m in ('faust', 'nats', 'aiokafka', 'yaml', 'tables') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    """For example `ceremony graph … | head -1`."""
    process = ceremony("graph", str(CEREMONIES / "backlog_review.yaml"), "--format", "dot")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert said == ""


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A user sees no traceback of our bugs, unless CEREMONY_DEBUG is set."""
    # specification 1.9, 23.2

    def broken() -> object:
        raise RuntimeError("two\nlines")

    monkeypatch.delenv("CEREMONY_DEBUG", raising=False)
    monkeypatch.setattr("steps.registry.all_kinds", broken)
    assert run(["validate", "x"]) == Exit.FAILED
    assert capsys.readouterr().err == "internal_error: RuntimeError: two lines (CEREMONY_DEBUG=1 shows where)\n"
    monkeypatch.setenv("CEREMONY_DEBUG", "1")
    run(["validate", "x"])
    assert "Traceback" in capsys.readouterr().err


class FailingWorker:
    """A worker with a part that has failed for good."""

    failure = RuntimeError("fenced:\nanother worker has taken over")
    halfway = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *reason: object) -> None:
        return None

    async def ended(self) -> None:
        return None


def replace_worker(monkeypatch: pytest.MonkeyPatch, made: type[FailingWorker]) -> None:
    """Let `serve` and `dev` start a `made` instead of a worker, without setting up logging."""
    for module in ("worker", "dev.stack"):
        monkeypatch.setattr(f"ceremony.{module}.worker_of_process", lambda _: made())
    monkeypatch.setattr("ceremony.logs.configure", lambda *_: None)


def test_a_worker_that_fails_for_good_ends_with_exit_1_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line holds the reason."""
    # specification 18.10
    replace_worker(monkeypatch, FailingWorker)
    assert run(["serve"]) == Exit.FAILED
    assert capsys.readouterr().err == "worker_failed: fenced: another worker has taken over\n"


class HalfwayWorker(FailingWorker):
    """A worker whose stop timed out: tasks of a library still wait for a neighbour that is away."""

    failure = None  # type: ignore[assignment]
    halfway = True
    grpc = http = SimpleNamespace(port=1, ready=lambda: True)


@pytest.mark.parametrize("verb", ["serve", "dev"])
def test_a_worker_that_stopped_halfway_exits_at_once(
    verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tasks that still wait would only log their cancellation. NATS of `dev` has been stopped before."""
    left: list[tuple[int, bool]] = []

    def leave(code: int) -> None:
        file = tmp_path / "dev.json"
        left.append((code, file.exists() and alive(json.loads(file.read_text())["nats_pid"])))

    monkeypatch.setattr("os._exit", leave)
    replace_worker(monkeypatch, HalfwayWorker)
    run([verb, *([str(tmp_path), "--ceremonies-dir", str(CEREMONIES)] if verb == "dev" else [])])
    assert left == [(Exit.OK, False)]


async def test_a_second_interrupt_ends_the_process_and_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one asks for a clean end; the second does not wait for a neighbour that is away."""
    # specification 23.1
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    child = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        stop = Stop(lambda: [child.pid])
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(stop.wait(), 5)
        assert codes == []
        os.kill(os.getpid(), signal.SIGINT)
        assert await asyncio.wait_for(child.wait(), 5) == -signal.SIGKILL
        assert codes == [Exit.INTERRUPTED]
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
        if child.returncode is None:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_cleanly_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """Exit 0, even if NATS and the Ray executor were never reachable."""
    # specification 18.8, 22.5
    options = ("--log", f"sqlite://{tmp_path}/log.db", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0")
    process = ceremony("serve", *options, env={"NATS_URL": "nats://127.0.0.1:1", "RAY_EXECUTOR_URL": "127.0.0.1:1"})
    try:
        assert process.stderr is not None
        while "serving" not in (line := process.stderr.readline()):
            assert line, "it ended before it served"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "stopped" in said


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"deliberations": [{"role": "QA"}, {"role": "QA"}], "task_id": "t"}, "2 proposals of QA"),
        ({"tasks": [{}, {}, {}], "task_id": "t"}, "3 tasks"),
        ({"aggregated_result": {"a": "ä"}}, '{"a": "ä"}'),
        ({"waiting": True, "message": "Yes or no?", "role": "PO"}, "Yes or no?"),
        ({"approved": False, "decided_by": "ana", "comment": "too large"}, "rejected by ana: too large"),
        ({"published": True, "subject": "ceremony.x"}, "published to ceremony.x"),
        ({"something": "else"}, '{"something": "else"}'),
    ],
)
def test_outputs_are_shown_in_words(output: dict[str, object], words: str) -> None:
    """Known outputs read as a phrase; an unknown one is shown unchanged."""
    assert in_words(json.dumps(output)) == words


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_an_unwritable_stdout_is_no_internal_error(redirection: str) -> None:
    """A closed stdout is silent; a full disk is one line and exit 1."""
    command = f"{shlex.join(PROGRAM)} validate -o json specs/ceremonies {redirection}"
    done = subprocess.run(
        ["sh", "-c", command], check=False, cwd=ROOT_FOLDER, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == ((0, "") if "&" in redirection else (1, "no_space: the disk is full\n"))


def test_an_argument_that_is_not_text_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get", "a\udcff:b"]) == Exit.USAGE
    assert capsys.readouterr().err == "argument_not_utf8: a?:b is not UTF-8 text\n"


@pytest.mark.parametrize("columns", ["0", "1", "20"])
def test_a_narrow_terminal_gets_readable_lines(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert console().width == NARROWEST
