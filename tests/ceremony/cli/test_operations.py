"""The operators' verbs against a real engine: on one ceremony, on several, by filter; history, dead letters, doctor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from ceremony.cli import deadletters, doctor, history
from ceremony.cli.errors import Exit
from ceremony.cli.retry import steps_to_retry
from ceremony.program import run
from tests.ceremony.cli.test_verbs import FAILS, data
from tests.dev_process import CEREMONIES, DevProcess, dev_on

pytestmark = pytest.mark.timeout(120)

Ceremony = Callable[..., int]
Said = pytest.CaptureFixture[str]


SHORT = """
version: "1.0"
name: short
description: It times out at once
states:
  - {id: ASK, description: Somebody is asked, initial: true}
  - {id: DONE, description: Done, terminal: true}
transitions:
  - {from: ASK, to: DONE, trigger: done, description: Agreed}
timeouts: {step_default: 1, step_max: 1, ceremony_max: 0.5}
steps:
  - {id: ask, state: ASK, handler: human_gate_step, config: {role: R, message: "Agreed?"}}
"""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevProcess]:
    folder = tmp_path_factory.mktemp("dev-operations")
    definitions = folder / "definitions"
    shutil.copytree(CEREMONIES, definitions)
    (definitions / "fails.yaml").write_text(FAILS)
    (definitions / "short.yaml").write_text(SHORT)
    options = ("--latency", "0.02", "--jitter", "0", "--ceremonies-dir", str(definitions), "--log-level", "ERROR")
    with dev_on(folder, *options) as running:
        yield running


@pytest.fixture
def ceremony(dev: DevProcess, monkeypatch: pytest.MonkeyPatch) -> Ceremony:
    """Run the program against that engine; return its exit code."""
    monkeypatch.setenv("CEREMONY_SERVER", dev.server)
    monkeypatch.setenv("CEREMONY_ACTOR", "ana")
    return lambda *arguments: run(arguments)


def begun(ceremony: Ceremony, capsys: Said, *names: str, definition: str = "approval", story: str = "s") -> list[str]:
    """Start ceremonies, and wait until their gate is open (of `fails`: until they have failed)."""
    for name in names:
        more = ("--wait", "--input", "payload={}") if definition == "fails" else ()
        ceremony("start", definition, "--ceremony-id", name, "--story-id", story, *more)
    ids = [f"{name}:{story}" for name in names]
    for instance_id in ids:
        for _ in range(100):
            capsys.readouterr()
            ceremony("get", instance_id, "-o", "json")
            if data(capsys)["status"] in ("WAITING_FOR_HUMAN", "FAILED"):
                break
    return ids


def status(ceremony: Ceremony, capsys: Said, instance_id: str) -> str:
    capsys.readouterr()
    ceremony("get", instance_id, "-o", "json")
    return str(data(capsys)["status"])


def test_one_ceremony_is_paused_resumed_and_cancelled(ceremony: Ceremony, capsys: Said) -> None:
    (one,) = begun(ceremony, capsys, "one")
    assert ceremony("pause", one, "-m", "lunch") == Exit.OK
    assert capsys.readouterr().out == "pause: one:s is PAUSED in ASKED\n"
    assert ceremony("resume", one, "--actor", "ben", "-o", "json") == Exit.OK
    assert data(capsys)["status"] == "WAITING_FOR_HUMAN"
    assert ceremony("cancel", one) == Exit.OK
    assert ceremony("resume", one) == Exit.FAILED
    assert "already_ended: " in capsys.readouterr().err


def test_several_ceremonies_are_operated_on_and_each_refusal_is_shown(ceremony: Ceremony, capsys: Said) -> None:
    # specification 23.7
    ids = begun(ceremony, capsys, "several-1", "several-2")
    assert ceremony("cancel", *ids, "no:body") == Exit.FAILED
    said = capsys.readouterr()
    assert said.out == "cancel: 2 of 3 done; refused or failed: 1 unknown_instance\n"
    assert said.err == "no:body: unknown_instance: there is no ceremony 'no:body'\n"
    assert {status(ceremony, capsys, name) for name in ids} == {"CANCELLED"}


def test_all_operates_on_the_ceremonies_that_match_and_no_others(ceremony: Ceremony, capsys: Said) -> None:
    # specification 23.7
    mine = begun(ceremony, capsys, *(f"all-{number}" for number in range(20)), story="mine")
    (other,) = begun(ceremony, capsys, "all-other", story="other")
    filters = ("--all", "--story", "mine", "--definition", "approval", "--state", "ASKED", "--yes")
    assert ceremony("pause", *filters, "-o", "json") == Exit.OK
    found = data(capsys)
    assert (found["total"], sorted(found["done"]), found["failed"]) == (20, sorted(mine), [])
    assert {status(ceremony, capsys, name) for name in mine} == {"PAUSED"}
    assert status(ceremony, capsys, other) == "WAITING_FOR_HUMAN"
    assert ceremony("resume", *filters, "--status", "running") == Exit.OK
    assert capsys.readouterr().out == "resume: 0 of 0 done\n"
    assert ceremony("cancel", *filters) == Exit.OK
    assert capsys.readouterr().out == "cancel: 20 of 20 done\n"


def test_nothing_is_changed_without_confirmation(ceremony: Ceremony, capsys: Said) -> None:
    """Without a terminal --yes is required; filters need --all; names and --all exclude each other."""
    # specification 23.7
    (one,) = begun(ceremony, capsys, "unasked")
    for arguments in (
        ("--all", "--story", "s"),
        ("--story", "s"),
        (one, "--all", "--yes"),
        (),
    ):
        assert ceremony("cancel", *arguments) == Exit.USAGE
    assert ceremony("run", "--all", "--yes") == Exit.USAGE
    assert status(ceremony, capsys, one) == "WAITING_FOR_HUMAN"


def test_a_ceremony_that_timed_out_is_opened_again_and_a_start_of_an_ended_one_says_so(
    ceremony: Ceremony, capsys: Said
) -> None:
    # specification 10.5, 13.9
    start = ("start", "short", "--ceremony-id", "short", "--story-id", "s")
    ceremony(*start, "--wait")
    assert status(ceremony, capsys, "short:s") == "TIMED_OUT"
    assert ceremony(*start) == Exit.OK
    assert capsys.readouterr().out == "short:s is there already: TIMED_OUT\n"
    assert ceremony(*start, "-o", "json") == Exit.OK
    assert data(capsys)["message"] == "short:s is there already: TIMED_OUT"
    ceremony("doctor", "short:s")
    assert "ceremony retry short:s" in capsys.readouterr().out
    assert ceremony("retry", "short:s") == Exit.OK
    assert capsys.readouterr().out.startswith("retry of the cancelled steps: short:s is WAITING_FOR_HUMAN")


def test_all_opens_ceremonies_that_timed_out_again_only_where_the_status_names_them(
    ceremony: Ceremony, capsys: Said
) -> None:
    # specification 13.9, 23.7
    for name in ("late-1", "late-2", "late-other"):
        story = "other" if name == "late-other" else "late"
        ceremony("start", "short", "--ceremony-id", name, "--story-id", story, "--wait")
    late = ["late-1:late", "late-2:late"]
    filters = ("--all", "--definition", "short", "--story", "late")
    capsys.readouterr()
    assert ceremony("retry", *filters, "--yes") == Exit.OK
    assert capsys.readouterr().out == "retry: 0 of 0 done\n"
    assert ceremony("retry", *filters, "--status", "timed_out") == Exit.USAGE
    assert "2 steps of 2 ceremonies" in capsys.readouterr().err
    assert ceremony("retry", *filters, "--status", "timed_out", "--step", "nobody", "--yes") == Exit.OK
    assert capsys.readouterr().out == "retry: 0 of 0 done\n"
    assert ceremony("retry", *filters, "--status", "timed_out", "--yes", "-o", "json") == Exit.OK
    assert sorted(data(capsys)["done"]) == [f"{name} of the cancelled steps" for name in late]
    for name in late:
        ceremony("history", name)
        assert "resumed" in capsys.readouterr().out
    assert status(ceremony, capsys, "late-other:other") == "TIMED_OUT"


@pytest.mark.parametrize(
    ("found", "only", "expected"),
    [
        ({"status": "FAILED", "step_status": {"a": "FAILED", "b": "CANCELLED", "c": "FAILED"}}, None, ["a", "c"]),
        ({"status": "FAILED", "step_status": {"a": "FAILED", "b": "CANCELLED"}}, "b", []),
        ({"status": "TIMED_OUT", "step_status": {"a": "COMPLETED", "b": "CANCELLED"}}, None, [""]),
        ({"status": "TIMED_OUT", "step_status": {"a": "FAILED", "b": "CANCELLED"}}, None, ["a"]),
        ({"status": "TIMED_OUT", "step_status": {"a": "FAILED", "b": "CANCELLED"}}, "b", ["b"]),
        ({"status": "TIMED_OUT", "step_status": {"a": "COMPLETED", "b": "CANCELLED"}}, "a", []),
    ],
)
def test_the_steps_that_all_retries_failed_or_were_cancelled_by_a_time_out(
    found: dict[str, Any], only: str | None, expected: list[str]
) -> None:
    # specification 23.7
    assert steps_to_retry(pb.PlanningCeremonyInstance(**found), only) == expected


def test_a_failed_step_is_retried_by_name_or_as_the_only_one(ceremony: Ceremony, capsys: Said) -> None:
    ids = begun(ceremony, capsys, "retry-1", "retry-2", definition="fails")
    capsys.readouterr()
    assert ceremony("retry", ids[0], "join", "-m", "again") == Exit.OK
    assert capsys.readouterr().out.startswith("retry join: retry-1:s is ")
    assert ceremony("retry", ids[1]) == Exit.OK
    for name in ids:
        ceremony("watch", name)
    capsys.readouterr()
    assert ceremony("retry", "--all", "--definition", "fails", "--yes", "-o", "json") == Exit.OK
    assert sorted(data(capsys)["done"]) == [f"{name} join" for name in ids]
    for name in ids:
        ceremony("watch", name)
    capsys.readouterr()
    ceremony("get", ids[0], "-o", "json")
    assert data(capsys)["steps"]["join"]["attempt"] == 3
    (waiting,) = begun(ceremony, capsys, "retry-nothing")
    assert ceremony("retry", waiting) == Exit.FAILED
    assert "step_not_failed: " in capsys.readouterr().err
    assert ceremony("retry", "no:body") == Exit.NOT_FOUND


def test_an_unselected_step_is_run(ceremony: Ceremony, capsys: Said) -> None:
    """The guard on that step then holds. A step that runs automatically is refused."""
    # specification 13.10
    (one,) = begun(ceremony, capsys, "run")
    capsys.readouterr()
    assert ceremony("run", one, "ask") == Exit.FAILED
    assert "step_selected: " in capsys.readouterr().err
    assert ceremony("run", one) == Exit.USAGE
    assert ceremony("run", "--all", "--step", "nothing", "--yes") == Exit.OK


def test_history_shows_actor_and_operation(ceremony: Ceremony, capsys: Said) -> None:
    (one,) = begun(ceremony, capsys, "told")
    ceremony("pause", one, "-m", "lunch")
    capsys.readouterr()
    assert ceremony("history", one) == Exit.OK
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert " started " in lines[2] and " paused " in lines[-1]
    assert " ana " in lines[-1] and " lunch " in lines[-1]
    assert said.err == ""
    assert ceremony("history", one, "-n", "1", "-o", "yaml") == Exit.OK
    found = yaml.safe_load(capsys.readouterr().out)
    assert [event["subject"] for event in found["events"]] == ["ceremony.paused"]
    assert (found["complete"], found["events"][0]["payload"]["reason"]) == (False, "lunch")
    assert ceremony("history", one, "-n", "1") == Exit.OK
    assert "incomplete: " in capsys.readouterr().err
    assert ceremony("history", "no:body") == Exit.NOT_FOUND


def test_history_is_drawn_as_a_timeline(ceremony: Ceremony, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in pages of one event: each comes once, in order."""
    # specification 26.1, 26.4
    monkeypatch.setattr(history, "PAGE_EVENTS", 1)
    (one,) = begun(ceremony, capsys, "drawn")
    ceremony("approve", one, "ask", "--role", "APPROVER", "-m", "looks right to me")
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "80")
    assert ceremony("history", one, "--timeline") == Exit.OK
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == one and said.err == ""
    assert [line for line in lines if "ask approved by ana (APPROVER): looks right to me" in line]
    assert "COMPLETED in" in lines[-1]
    assert ceremony("history", one, "-o", "json") == Exit.OK
    found = data(capsys)
    ids = [event["effect_id"] for event in found["events"]]
    assert found["complete"] and len(ids) == len(set(ids)) == len(lines) - 2


def test_history_shows_who_fired_a_trigger(ceremony: Ceremony, capsys: Said) -> None:
    # specification 13.11
    (one,) = begun(ceremony, capsys, "fired")
    ceremony("trigger", one, "decline", "--role", "APPROVER", "-m", "too late")
    capsys.readouterr()
    assert ceremony("history", one) == Exit.OK
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "trigger=decline" in line]
    assert "ana (APPROVER)" in line and "too late" in line
    assert ceremony("history", one, "-o", "json") == Exit.OK
    told = {event["subject"]: event["metadata"] for event in data(capsys)["events"]}
    assert told["ceremony.transition.applied"] == {"actor": "ana", "role": "APPROVER", "reason": "too late"}
    assert told["ceremony.completed"] == {}


def test_doctor_of_one_ceremony_shows_its_waits_and_remedies(ceremony: Ceremony, capsys: Said) -> None:
    # specification 14.14
    (one,) = begun(ceremony, capsys, "patient")
    capsys.readouterr()
    assert ceremony("doctor", one) == Exit.OK
    said = capsys.readouterr().out
    for part in ("waiting_for_human", "the role APPROVER decides", "gate/ask", "step `ask` is WAITING_FOR_HUMAN"):
        assert part in said
    assert said.rstrip().endswith("→ ceremony approve patient:s ask --role APPROVER")
    assert ceremony("doctor", "no:body") == Exit.NOT_FOUND


def test_doctor_of_all_is_also_printed_as_data(ceremony: Ceremony, capsys: Said) -> None:
    # specification 23.3
    (one,) = begun(ceremony, capsys, "for-the-doctor")
    ceremony("pause", one, "-m", "lunch")
    capsys.readouterr()
    assert ceremony("doctor", "-o", "json") == Exit.OK
    found = data(capsys)
    assert found["healthy"] and found["statuses"]["PAUSED"] >= 1
    assert one in [told["instance_id"] for told in found["ceremonies"] if told["verdict"] == "paused"]
    assert ceremony("doctor") == Exit.OK
    said = capsys.readouterr().out
    assert "nothing is stuck" in said and "paused by ana: lunch" in said and f"ceremony resume {one}" in said


def test_doctor_fails_when_something_is_stuck(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report names problem, place and remedy, and shows a stuck ceremony in full."""
    # specification 12.11, 23.8
    found = pb.DiagnoseResponse(
        findings=[
            pb.Finding(
                severity="error", code="log_differs", subject="partition 1", message="it differs", todo="restore"
            ),
            pb.Finding(severity="warning", code="dead_letters", subject="boom", message="3 set aside", todo="replay"),
        ],
        ceremonies=[
            pb.CeremonyDiagnosis(
                instance_id="c:s",
                verdict="stuck",
                message="it waits for nothing",
                todo=["ceremony cancel c:s"],
                ways_out=[
                    pb.WayOut(
                        trigger="go", to_state="DONE", guards=[pb.GuardState(guard="good", reason="score is 0.1")]
                    )
                ],
            )
        ],
        partitions=[pb.PartitionState(partition=0, state="served"), pb.PartitionState(partition=1, state="not_served")],
        neighbours=[pb.NeighbourState(name="nats", state="connecting")],
        verdicts={"stuck": 1},
        incomplete="dead letters: the log cannot be reached",
    )
    monkeypatch.setattr(doctor, "call", lambda *_: found)
    assert run(("doctor",)) == Exit.FAILED
    said = capsys.readouterr().out
    assert said.startswith("1 thing stands still\n")
    for part in (
        "error log_differs  partition 1: it differs",
        "→ restore",
        "1 served, 1 not_served",
        "nats connecting",
        "it waits for nothing",
        "score is 0.1",
        "→ ceremony cancel c:s",
        "dead letters: the log cannot be reached",
    ):
        assert part in said
    assert run(("doctor", "-o", "json")) == Exit.FAILED
    assert data(capsys)["findings"][0]["code"] == "log_differs"


@pytest.mark.parametrize("origin", ["nonsense", "a/b/c", "/1/2", "a/1/-2", "a/1"])
def test_an_origin_is_topic_partition_and_offset(ceremony: Ceremony, origin: str) -> None:
    assert ceremony("deadletters", "show", origin) == Exit.USAGE
    assert ceremony("deadletters", "replay", origin) == Exit.USAGE


def test_an_origin_may_have_slashes_in_its_topic() -> None:
    assert deadletters.parsed("a/b/1/2") == ("a/b", 1, 2)


def test_a_dead_letter_is_shown_and_sent_back_by_the_command_line(
    ceremony: Ceremony, capsys: Said, dev: DevProcess
) -> None:
    """A message without an envelope becomes a new dead letter when it is sent back."""
    origin = malformed(ceremony, capsys, dev)
    assert ceremony("deadletters", "show", origin) == Exit.OK
    said = capsys.readouterr().out
    assert "message_undecodable" in said and '{"nonsense": ' in said
    assert ceremony("deadletters", "show", origin, "-o", "json") == Exit.OK
    found = data(capsys)
    assert (found["body"], found["body_from"]) == ('{"nonsense": ', "dead_letter")
    assert found["headers"] == [{"name": "subject", "value": "agent.response.completed"}]
    assert ceremony("deadletters", "replay", origin) == Exit.FAILED
    assert capsys.readouterr().err.startswith("still_malformed: ")
    assert ceremony("deadletters", "replay", "--all", "--code", "message_undecodable", "--yes") == Exit.FAILED
    assert "refused or failed: 1 still_malformed" in capsys.readouterr().out
    assert ceremony("deadletters", "replay", "--all", "--code", "none", "--yes") == Exit.OK
    assert ceremony("deadletters", "replay", origin, "--all") == Exit.USAGE
    assert ceremony("deadletters", "replay") == Exit.USAGE
    assert ceremony("doctor") == Exit.OK
    assert "warning dead_letters" in capsys.readouterr().out


def malformed(ceremony: Ceremony, capsys: Said, dev: DevProcess) -> str:
    """Publish a malformed response of an agent; return the origin of its dead letter."""
    publish(str(dev.running["nats"]), "agent.response.completed", b'{"nonsense": ')
    for _ in range(200):
        capsys.readouterr()
        ceremony("deadletters", "list", "-o", "json")
        for one in data(capsys)["dead_letters"]:
            return f"{one['origin']}/{one['partition']}/{one['offset']}"
    raise AssertionError("nothing was set aside")


def publish(url: str, subject: str, body: bytes) -> None:
    """Publish to JetStream and wait for the acknowledgement."""
    import asyncio  # noqa: PLC0415 - the only test here that speaks NATS

    import nats  # noqa: PLC0415 - as above

    async def work() -> Any:
        client = await nats.connect(url)
        await client.jetstream().publish(subject, body)
        await client.close()

    asyncio.run(work())
