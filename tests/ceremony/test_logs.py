"""Log lines name the failure and its place, and never hold data of clients."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog
from faust.agents.actor import Actor

from ceremony.logs import configure, redact_with, report_left_out
from ceremony.repeated_lines import MOST, MOST_KINDS, MOST_OF_MANY, QUIET_SECONDS
from steps.secrets.redactor import TextRedactor
from tests.steps.secrets.planted import planted


@pytest.fixture
def as_before() -> Iterator[None]:
    """Restore the state of the process that `configure` changes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def failing(record: str) -> None:
    raise ValueError(len(record))


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("style", ["console", "json"])
def test_a_traceback_shows_no_values(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", style)
    record = "what nobody should read"
    try:
        failing(record)
    except ValueError:
        structlog.get_logger("a").exception("failed")
    said = capsys.readouterr().err
    assert "ValueError: 23" in said and "in failing" in said
    assert record not in said


@pytest.mark.usefixtures("as_before")
def test_faust_adds_no_traceback_to_our_line_about_a_poison_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Its logger still has the expected name. Our own line, which names the record, is in `Part._bury`."""
    configure("INFO", "console")
    Actor.logger.exception("Crashed reason=%r", ValueError("poison"))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("as_before")
def test_repeated_failures_of_calls_are_one_line_and_a_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an outage every call fails in the same way. Other lines are not held back."""
    configure("INFO", "json")
    now = 1_000.0
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.time_ns", lambda: int(now * 1e9))
    logger = structlog.get_logger("a")
    for number in range(100):
        logger.warning("append_failed", reason=str(number))
    logger.warning("something_else")
    now += QUIET_SECONDS
    logger.warning("append_failed", reason="later")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    said = [(line["event"], line.get("reason"), line.get("more")) for line in lines]
    assert said == [("append_failed", "0", None), ("something_else", None, None), ("append_failed", "later", 99)]


@pytest.mark.usefixtures("as_before")
def test_a_line_below_the_level_is_dropped_before_it_is_formatted() -> None:
    """Each attempt has a debug line: its values are not even looked at."""
    configure("INFO", "json")
    with structlog.contextvars.bound_contextvars(instance="c1"):
        processors = structlog.get_config()["processors"]
        with pytest.raises(structlog.DropEvent):
            processors[0](logging.getLogger("a"), "debug", {"event": "step_outcome"})


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("logger", ["aiokafka.cluster", "grpc._cython.cygrpc", "nats.aio.client"])
def test_a_line_of_a_library_is_an_event_of_ours(logger: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its `[error]` is a hint. A line that comes again and again is one line and a count."""
    configure("INFO", "json")
    for number in range(50):
        logging.getLogger(logger).error("Topic %s not found in cluster metadata", f"t{number}")
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["event"], line["level"], line["library"]) == ("library_warning", "warning", logger.partition(".")[0])
    assert line["reason"] == "Topic t0 not found in cluster metadata"


@pytest.mark.usefixtures("as_before")
def test_lines_of_a_library_that_were_held_back_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("INFO", "json")
    now = 1_000.0
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.time_ns", lambda: int(now * 1e9))
    for _ in range(4):
        logging.getLogger("aiokafka.cluster").error("again")
    now += QUIET_SECONDS
    logging.getLogger("aiokafka.cluster").error("again")
    assert [json.loads(line).get("more") for line in capsys.readouterr().err.splitlines()] == [None, 3]


@pytest.mark.usefixtures("as_before")
def test_any_line_that_comes_again_and_again_is_bounded_and_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug brings a traceback for each call. Where no further line tells of those held back, a report does."""
    # specification 30.4
    configure("INFO", "json")
    now = 1_000.0
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.time_ns", lambda: int(now * 1e9))
    for number in range(5_000):
        structlog.get_logger("a").error("step_agent_failed", instance=f"c{number}")
        logging.getLogger("streams.transport.x").error("%s: dead-lettered", number)
    report_left_out(now)
    report_left_out(now + QUIET_SECONDS)
    report_left_out(now + 2 * QUIET_SECONDS)
    *lines, report = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 2 * MOST
    left = 5_000 - MOST
    assert report["event"] == "lines_left_out" and report["count"] == 2 * left
    assert report["lines"] == {"step_agent_failed": left, "streams.transport.x: %s: dead-lettered": left}


@pytest.mark.usefixtures("as_before")
def test_lines_of_endlessly_many_kinds_are_bounded_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", "json")
    for number in range(3_000):
        logging.getLogger("nats").warning(f"error {number}")  # noqa: G004 - as libraries do
    assert len(capsys.readouterr().err.splitlines()) == MOST_KINDS + MOST_OF_MANY


FAILING_BIND = """
import asyncio, os, socket
from ceremony import program
try:
    program.run(["--version"])
except SystemExit:
    pass
import grpc.aio
async def bind_a_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        grpc.aio.server(options=[("grpc.so_reuseport", 0)]).add_insecure_port("127.0.0.1:%d" % taken.getsockname()[1])
try:
    asyncio.run(bind_a_taken_port())
except RuntimeError:
    print("refused")
"""


@pytest.mark.parametrize(("wanted", "shown"), [(None, False), ("ERROR", True)])
def test_the_core_of_grpc_writes_to_stderr_only_if_asked(wanted: str | None, shown: bool) -> None:  # noqa: FBT001
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    environment |= {} if wanted is None else {"GRPC_VERBOSITY": wanted}
    done = subprocess.run(
        [sys.executable, "-c", FAILING_BIND], check=True, capture_output=True, text=True, timeout=60, env=environment
    )
    assert "refused" in done.stdout
    assert ("Failed to add port" in done.stderr) is shown


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("style", ["console", "json"])
def test_no_line_holds_a_secret_or_a_learnt_prompt(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Not in a value, not in a traceback, and not in a line of a library."""
    # specification 27.10
    configure("INFO", style)
    prompt = "Weigh every risk of the story as a patient architect would do"
    texts = [one.text for one in planted()]
    structlog.get_logger("a").warning("before", reason=texts[0])
    redactor = TextRedactor()
    redactor.learn((prompt,))
    redact_with(redactor)
    try:
        int(texts[1])
    except ValueError:
        structlog.get_logger("a").exception("failed", reason=texts, key={"password": "hunter2!hunter"}, said=prompt)
    logging.getLogger("nats").warning("got %s", texts)
    logging.getLogger("elsewhere").error("\n".join(texts))
    said = capsys.readouterr().err
    for one in planted():
        assert one.secret not in said.replace("\\n", "\n").replace('\\"', '"'), one.rule
    assert prompt[:40] not in said
    assert "hunter2" not in said
    assert "[redacted:raw_prompt]" in said
    if style == "json":
        assert all(json.loads(line)["level"] for line in said.splitlines())


RAW = """
import asyncio, gc, threading, warnings
from ceremony.logs import configure
configure("INFO")
warnings.warn("old thing")
class Broken:
    def __del__(self):
        raise ValueError("in a finaliser")
Broken()
def fail():
    raise ValueError("in a thread")
thread = threading.Thread(target=fail, name="t1")
thread.start()
thread.join()
async def main():
    async def lost():
        raise ValueError("in a task")
    asyncio.create_task(lost())
    await asyncio.sleep(0)
asyncio.run(main())
gc.collect()
"""


def test_lines_of_python_itself_are_lines_of_the_log() -> None:
    """Warnings, errors in finalisers and threads, and errors of tasks that nobody has looked at. JSON on a pipe."""
    # specification 30.5
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONWARNINGS")}
    done = subprocess.run(
        [sys.executable, "-c", RAW], check=True, capture_output=True, text=True, timeout=60, env=environment
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    events = ["library_warning", "error_unraisable", "thread_failed", "library_warning"]
    assert [line["event"] for line in lines] == events
    assert (lines[0]["library"], lines[3]["library"]) == ("python", "asyncio")
    texts = ("UserWarning: old thing", "in a finaliser", "in a thread", "in a task")
    assert all(text in json.dumps(line) for text, line in zip(texts, lines, strict=True))


WRITES = """
import structlog
from ceremony.logs import configure
configure("INFO")
structlog.get_logger("a").info("told", reason="r", nothing=None)
"""


@pytest.mark.parametrize(
    ("variables", "on_terminal", "json_lines", "colours"),
    [
        ({}, False, True, False),
        ({"FORCE_COLOR": "1"}, False, True, False),
        ({}, True, False, True),
        ({"NO_COLOR": "1"}, True, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False, False),
        ({"TERM": "dumb"}, True, False, False),
    ],
)
def test_lines_are_json_on_a_pipe_and_for_people_on_a_terminal(
    *, variables: dict[str, str], on_terminal: bool, json_lines: bool, colours: bool
) -> None:
    # specification 30.5
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    mine, its = pty.openpty() if on_terminal else os.pipe()
    reader, writer = mine, its
    with subprocess.Popen(
        [sys.executable, "-c", WRITES], stderr=writer, env={**plain, "TERM": "xterm", **variables}
    ) as running:
        text = b""
        while b"\n" not in text:
            text += os.read(reader, 4096)
        assert running.wait(30) == 0
    os.close(reader)
    os.close(writer)
    assert (b"\033[" in text) is colours
    assert b"nothing" not in text and b"told" in text
    if json_lines:
        assert json.loads(text)["reason"] == "r"
    else:
        assert not text.startswith(b"{")
