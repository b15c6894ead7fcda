"""The verbs that call an engine, against a real one: `ceremony dev` in a folder of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from ceremony.cli import views
from ceremony.cli.display import console, local
from ceremony.cli.errors import Exit
from ceremony.cli.output import clean
from ceremony.cli.watch import ChangeLines
from ceremony.program import run
from tests.dev_process import CEREMONIES, DevProcess, dev_on
from tests.dev_process import ceremony as program

pytestmark = pytest.mark.timeout(120)

Ceremony = Callable[..., int]


FAILS = """\
version: "1.0"
name: fails
description: Joins texts that are none
inputs: {required: [payload]}
states:
  - {id: JOINING, description: joins, initial: true}
  - {id: JOINED, description: never, terminal: true}
transitions:
  - {from: JOINING, to: JOINED, trigger: joined, description: never}
steps:
  - {id: join, state: JOINING, handler: aggregation_step, config: {sources: [payload], aggregation_type: concat}}
"""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevProcess]:
    folder = tmp_path_factory.mktemp("dev")
    definitions = folder / "definitions"
    shutil.copytree(CEREMONIES, definitions)
    (definitions / "fails.yaml").write_text(FAILS)
    (definitions / "broken.yaml").write_text(FAILS)
    options = ("--latency", "0.02", "--jitter", "0", "--ceremonies-dir", str(definitions), "--log-level", "ERROR")
    with dev_on(folder, *options) as running:
        yield running


@pytest.fixture
def ceremony(dev: DevProcess, monkeypatch: pytest.MonkeyPatch) -> Ceremony:
    """Run the program against that engine; return its exit code."""
    monkeypatch.setenv("CEREMONY_SERVER", dev.server)
    return lambda *arguments: run(arguments)


Said = pytest.CaptureFixture[str]


def data(said: Said) -> Any:
    """The printed text, parsed as JSON."""
    return json.loads(said.readouterr().out)


def test_a_ceremony_runs_from_start_to_end_by_the_command_line(ceremony: Ceremony, capsys: Said) -> None:
    """Start it, look at it, approve its only open gate, follow it to its end, and read it as data."""
    # specification 23.3
    assert ceremony("start", "approval", "--ceremony-id", "all", "--story-id", "s") == Exit.OK
    assert capsys.readouterr().out == "started all:s\n"
    assert ceremony("get", "all:s") == Exit.OK
    shown = capsys.readouterr().out
    assert "WAITING_FOR_HUMAN" in shown
    assert "ceremony approve all:s ask --role APPROVER" in shown
    assert ceremony("approve", "all:s", "--actor", "ana", "-m", "good") == Exit.OK
    assert capsys.readouterr().out.startswith("approved ask: all:s is ")
    assert ceremony("watch", "all:s") == Exit.OK
    assert "state APPROVED, COMPLETED" in capsys.readouterr().out
    assert ceremony("get", "all:s", "-o", "json") == Exit.OK
    found = data(capsys)
    assert (found["status"], found["current_state"]) == ("COMPLETED", "APPROVED")
    output = found["steps"]["ask"]["output"]
    assert (output["approved"], output["decided_by"], output["comment"]) == (True, "ana", "good")


def test_start_can_wait_for_the_end(ceremony: Ceremony, capsys: Said) -> None:
    """It prints one line of JSON for each change; the last one is the end."""
    # specification 23.6
    arguments = ("--ceremony-id", "wait", "--story-id", "s", "--input", 'payload={"a": 1}', "--wait", "-o", "json")
    assert ceremony("start", "merge_chain", *arguments) == Exit.OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["status"] == "COMPLETED"
    assert lines[-1]["steps"]["merge_5"]["output"]["aggregated_result"] == {"a": 1}
    assert [line["version"] for line in lines] == sorted({line["version"] for line in lines})


def test_watching_ends_when_its_reader_goes_away(ceremony: Ceremony, dev: DevProcess) -> None:
    """It does not wait for the next change, which may be days away."""
    started = ("start", "approval", "--ceremony-id", "unread", "--story-id", "s")
    assert ceremony(*started) == Exit.OK
    watching = program("watch", "unread:s", "--server", dev.server)
    assert watching.stdout is not None and watching.stderr is not None
    watching.stdout.readline()
    watching.stdout.close()
    try:
        assert watching.wait(20) == Exit.FAILED
        assert watching.stderr.read() == ""
    finally:
        watching.kill()
        watching.stderr.close()


def test_inputs_can_come_from_a_file_and_options_win(ceremony: Ceremony, capsys: Said, tmp_path: Path) -> None:
    """Values other than strings keep their types."""
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({"payload": {"n": 5, "list": [1, None]}}))
    start = ("start", "merge_chain", "--story-id", "s", "--inputs-file", str(file), "--wait", "-o", "json")
    assert ceremony(*start, "--ceremony-id", "file") == Exit.OK
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["steps"]["merge_1"]["output"]["aggregated_result"] == {"n": 5, "list": [1, None]}
    assert ceremony(*start, "--ceremony-id", "option", "--input", 'payload={"n": 6}') == Exit.OK
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["steps"]["merge_1"]["output"]["aggregated_result"] == {"n": 6}


def test_a_rejection_is_followed_to_its_end(ceremony: Ceremony, capsys: Said) -> None:
    """`on_failure` of the gate decides the end."""
    ceremony("start", "approval", "--ceremony-id", "no", "--story-id", "s")
    assert ceremony("reject", "no:s", "ask", "--actor", "ana", "--role", "APPROVER", "-o", "json") == Exit.OK
    capsys.readouterr()
    assert ceremony("get", "no:s", "-o", "yaml") == Exit.OK
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["current_state"], found["steps"]["ask"]["output"]["approved"]) == ("DECLINED", False)


def test_watching_a_ceremony_that_fails_ends_with_exit_1(ceremony: Ceremony, capsys: Said) -> None:
    """Scripts need not parse the output."""
    # specification 23.6
    arguments = ("--ceremony-id", "bad", "--story-id", "s", "--input", "payload={}", "--wait")
    assert ceremony("start", "fails", *arguments) == Exit.FAILED
    said = capsys.readouterr()
    assert "step join FAILED, attempt 1: " in said.out
    assert "bad:s ended FAILED" in said.err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("start", "nothing", "--ceremony-id", "c", "--story-id", "s"), Exit.NOT_FOUND, "definition_unknown"),
        (("start", "merge_chain", "--ceremony-id", "c", "--story-id", "s"), Exit.FAILED, "input_missing"),
        (("get", "nobody"), Exit.NOT_FOUND, "unknown_instance"),
        (("watch", "no:body"), Exit.NOT_FOUND, "unknown_instance"),
        (("approve", "no:body"), Exit.NOT_FOUND, "unknown_instance"),
        (("trigger", "no:body", "go"), Exit.NOT_FOUND, "unknown_instance"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)  # fmt: skip
def test_a_refusal_is_its_code_and_its_reason_on_stderr(
    arguments: tuple[str, ...], exit_code: Exit, code: str, ceremony: Ceremony, capsys: Said
) -> None:
    """It is one line, and stdout is empty."""
    # specification 23.1, 23.2
    assert ceremony(*arguments) == exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{code}: ")
    assert said.err.count("\n") == 1


def test_an_impossible_decision_is_refused_with_its_reason(ceremony: Ceremony, capsys: Said) -> None:
    """No gate is open, the gate is unknown, the role is not allowed, or the trigger does not leave the state."""
    ceremony("start", "merge_chain", "--ceremony-id", "none", "--story-id", "s", "--input", "payload={}", "--wait")
    capsys.readouterr()
    assert ceremony("approve", "none:s") == Exit.FAILED
    assert capsys.readouterr().err.startswith("gate_not_open: none:s has no open gate: it is COMPLETED")
    ceremony("start", "approval", "--ceremony-id", "open", "--story-id", "s")
    assert ceremony("approve", "open:s", "other_gate") == Exit.NOT_FOUND
    assert ceremony("approve", "open:s", "--role", "STRANGER") == Exit.FAILED
    assert ceremony("approve", "open:s", "--visit", "7") == Exit.FAILED
    assert ceremony("trigger", "open:s", "nonsense", "--actor", "ana") == Exit.FAILED
    said = capsys.readouterr()
    assert said.out == "started open:s\n"
    assert len(said.err.splitlines()) == 4


def test_a_trigger_moves_a_ceremony(ceremony: Ceremony, capsys: Said) -> None:
    """The definition declares no roles, so none is needed."""
    ceremony("start", "approval", "--ceremony-id", "moved", "--story-id", "s")
    assert ceremony("trigger", "moved:s", "decline", "--actor", "ana") == Exit.OK
    assert "decline: moved:s is COMPLETED in DECLINED" in capsys.readouterr().out


def test_one_of_several_open_gates_must_be_named(ceremony: Ceremony, capsys: Said) -> None:
    """Two human guards wait in one state; the error names both."""
    inputs = ("--input", "title=t", "--input", 'score={"value": 0.1}')
    ceremony("start", "planning", "--ceremony-id", "two", "--story-id", "s", *inputs)
    waiting: dict[str, Any] = {}
    while not waiting.get("open_gates"):
        capsys.readouterr()
        ceremony("get", "two:s", "-o", "json")
        waiting = data(capsys)
    assert ceremony("approve", "two:s") == Exit.FAILED
    assert capsys.readouterr().err.startswith("gate_ambiguous: two:s has several open gates: owner_")
    assert ceremony("approve", "two:s", "owner_refuses") == Exit.OK
    assert "two:s is COMPLETED in TURNED_DOWN" in capsys.readouterr().out


def test_lists_are_filtered_and_paged(ceremony: Ceremony, capsys: Said) -> None:
    """They are filtered by story, state, definition and status; the total shows how many more there are."""
    for number in range(3):
        ceremony("start", "approval", "--ceremony-id", f"l{number}", "--story-id", "listed")
    capsys.readouterr()
    listed = ("list", "--story", "listed", "-o", "json")
    assert ceremony(*listed) == Exit.OK
    found = data(capsys)
    assert (len(found["ceremonies"]), found["total_count"]) == (3, 3)
    ceremony(*listed, "--limit", "1", "--offset", "1")
    page = data(capsys)
    assert [one["instance_id"] for one in page["ceremonies"]] == [found["ceremonies"][1]["instance_id"]]
    assert page["total_count"] == 3
    for filters, count in (
        (("--status", "waiting_for_human"), 3),
        (("--status", "WAITING_FOR_HUMAN", "--limit", "2"), 2),
        (("--status", "COMPLETED"), 0),
        (("--state", "ASKED"), 3),
        (("--definition", "planning"), 0),
        (("--correlation", "l1:listed"), 1),
        (("--since", "1h", "--until", "2999-01-01"), 3),
        (("--until", "1h"), 0),
        (("--error-code", "timeout"), 0),
        (("--subject", "planning.done"), 0),
        (("--gate-role", "NOBODY"), 0),
        (("--input", "title=x"), 0),
    ):
        ceremony(*listed, *filters)
        assert len(data(capsys)["ceremonies"]) == count, filters
    assert ceremony("list", "--story", "listed", "--limit", "2") == Exit.OK
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 4
    assert "1 to 2 of 3" in said.err


def test_filters_of_a_list_that_are_malformed_name_the_option(ceremony: Ceremony, capsys: Said) -> None:
    assert ceremony("list", "--since", "yesterday") == Exit.USAGE
    assert capsys.readouterr().err.startswith("since_invalid: --since 'yesterday'")
    assert ceremony("list", "--input", "title") == Exit.USAGE
    assert "'title' is not NAME=VALUE" in capsys.readouterr().err


def test_an_input_that_is_not_searchable_is_named(ceremony: Ceremony, capsys: Said) -> None:
    # specification 14.21
    assert ceremony("list", "--input", "colour=red") == Exit.OK
    note = "no present definition names colour in `inputs.searchable`; searchable are title, urgent"
    assert capsys.readouterr().err == f"{note}\nno ceremonies\n"
    assert ceremony("list", "--input", "title=red", "--definition", "approval") == Exit.OK
    note = "definition approval does not name title in `inputs.searchable`; none is searchable"
    assert capsys.readouterr().err == f"{note}\nno ceremonies\n"


def test_an_empty_list_is_not_an_error(ceremony: Ceremony, capsys: Said) -> None:
    """Stdout is empty for a pipe, and a line on stderr informs people."""
    assert ceremony("list", "--story", "never") == Exit.OK
    assert capsys.readouterr() == ("", "no ceremonies\n")


def test_definitions_and_dead_letters_are_listed(ceremony: Ceremony, capsys: Said) -> None:
    """Both are printed as tables and as data."""
    assert ceremony("definitions") == Exit.OK
    assert "backlog_review" in capsys.readouterr().out
    assert ceremony("definitions", "-o", "json") == Exit.OK
    found = {one["name"]: one for one in data(capsys)}
    assert (found["fails"]["valid"], len(found["fails"]["hash"]), found["fails"]["problems"]) == (True, 64, [])
    assert (found["broken"]["valid"], found["broken"]["hash"]) == (False, "")
    assert "broken.yaml:2: name_mismatch: " in found["broken"]["problems"][0]
    assert ceremony("deadletters", "list") == Exit.OK
    assert "no dead letters" in capsys.readouterr().err
    assert ceremony("deadletters", "list", "-o", "json", "--topic", "AGENT_RESPONSES") == Exit.OK
    assert data(capsys) == {"dead_letters": [], "total_count": 0}


def test_a_dead_letter_is_shown_with_its_origin(capsys: Said) -> None:
    """The response of the engine is made here, without a real dead letter."""
    letter = pb.DeadLetter(origin="AGENT_RESPONSES", offset=7, code="undecodable", message="no JSON", size=3, key="a.b")
    console().print(views.dead_letters_view([letter]))
    assert "AGENT_RESPONSES/0/7" in capsys.readouterr().out
    assert views.dead_letter_data(letter)["code"] == "undecodable"


def test_text_from_an_engine_cannot_control_the_terminal(capsys: Said) -> None:
    """Escape sequences in ids and errors are replaced."""
    # specification 23.11
    evil = pb.PlanningCeremonyInstance(
        instance_id="a:b\x1b[2J",
        status="FAILED",
        error_code="x",
        error_message="\x1b]0;owned\x07",
        current_state="[red]S",
    )
    evil.step_status["s\x1b"] = "FAILED"
    console().print(views.ceremony_view(evil))
    console().print(views.list_view([evil]))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "[red]S" in said
    assert clean("a\x00b\nc") == "a�b\nc"


def test_each_change_is_printed_once() -> None:
    """An unchanged step is not printed again; a new attempt is."""
    lines = ChangeLines()
    first = pb.PlanningCeremonyInstance(
        current_state="A", status="RUNNING", step_status={"s": "IN_PROGRESS", "t": "PENDING"}
    )
    first.step_attempts["s"] = 1
    assert list(lines.changes(first)) == ["step s IN_PROGRESS, attempt 1", "state A, RUNNING"]
    assert list(lines.changes(first)) == []
    again = pb.PlanningCeremonyInstance()
    again.CopyFrom(first)
    again.step_attempts["s"] = 2
    again.step_errors["s"] = "timeout: too late"
    assert list(lines.changes(again)) == ["step s IN_PROGRESS, attempt 2: timeout: too late"]


def test_times_are_local_and_other_texts_unchanged() -> None:
    """A text that is not a time stays unchanged."""
    assert local("2026-11-25T01:30:00.000Z")[4] == "-"
    assert local("soon") == "soon"
