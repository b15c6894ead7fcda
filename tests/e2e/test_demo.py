"""`ceremony demo` and `ceremony dev` as processes: everything adds up, nothing is lost, nothing is left running."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient

from tests.dev_process import CEREMONIES, DevProcess, alive, ceremony, until_gone

pytestmark = pytest.mark.timeout(180)
DEMO_SECONDS = 120
# Bytes; the log of a newly started engine is a third of it.
FILE_BYTES = 300 * 1024


def demo(*arguments: str, folder: Path | None = None, **options: Any) -> tuple[int, dict[str, Any], str]:
    """Run a demo; return its exit code, the object on stdout, and stderr."""
    where = () if folder is None else ("--folder", str(folder))
    process = ceremony("demo", "-o", "json", *where, *arguments, **options)
    try:
        out, err = process.communicate(timeout=DEMO_SECONDS)
    finally:
        process.kill()
    return process.returncode, json.loads(out) if out else {}, err


def children(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if alive(pid)]


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevProcess]:
    process = DevProcess(tmp_path / "dev", "--latency", "0.3")
    try:
        yield process
    finally:
        process.end()


def test_every_start_of_a_demo_is_accounted_for(tmp_path: Path) -> None:
    """The counts of a consumer match the starts: per definition, per event, per step."""
    # specification 23.10
    code, found, err = demo("--count", "20", folder=tmp_path)
    assert code == 0, err
    assert found["ok"] is True
    assert (found["accepted"], found["ended"], found["missing"]) == (20, 20, [])
    rows = found["definitions"]
    assert rows.keys() == {path.stem for path in CEREMONIES.glob("*.yaml")}
    assert rows["backlog_review"]["started"] == 10
    assert sum(row["started"] for row in rows.values()) == 20
    assert all(row["completed"] == row["started"] for row in rows.values()), rows
    assert all(0 < row["p50_ms"] <= row["p99_ms"] for row in rows.values()), rows
    events = found["events"]
    assert events["ceremony.started"] == events["ceremony.completed"] == 20
    assert events["ceremony.step.executed"] == found["steps"] == sum(row["steps"] for row in rows.values())
    assert events["ceremony.backlog_review.reviewed"] == 10
    assert events["ceremony.publish.requested"] == events["ceremony.publish.completed"]
    assert found["events_total"] == sum(events.values())
    assert found["decisions"] >= events["ceremony.gate.decided"] >= 10
    assert children(tmp_path) == []


@pytest.mark.uncounted
def test_a_demo_of_one_definition_runs_in_a_used_folder(tmp_path: Path) -> None:
    """The second run counts only its own ceremonies."""
    for foreign in (False, True):
        code, found, err = demo("--count", "4", "--definition", "merge_chain", folder=tmp_path)
        assert code == 0, err
        assert found["events"]["ceremony.started"] == 4
        assert found["steps"] == 20
        assert (found["foreign_messages"] > 0) is foreign


def test_a_demo_that_times_out_names_the_missing_ceremonies(tmp_path: Path) -> None:
    """Exit 1; each start without an end is listed with its waits."""
    # specification 23.10
    slow = ("--definition", "backlog_review", "--timeout", "5", "--", "--latency", "60")
    code, found, err = demo("--count", "2", *slow, folder=tmp_path)
    assert code == 1
    assert found["ok"] is False
    assert len(found["missing"]) == 2, found
    assert all(any("results are awaited" in line for line in one["waiting_for"]) for one in found["missing"]), found
    assert err.splitlines()[-1].startswith("demo_failed: of 2: 2 accepted, 0 ended, 2 missing")
    assert children(tmp_path) == []


@pytest.mark.uncounted
def test_a_demo_adds_up_when_agents_repeat_and_overtake_each_other(tmp_path: Path) -> None:
    """Repeated and late answers change no figure: steps and events are the same as without them."""
    rough = ("--", "--duplicate-rate", "0.5", "--reorder-rate", "0.5", "--failure-rate", "0.05", "--seed", "7")
    code, found, err = demo("--count", "10", "--definition", "backlog_review", *rough, folder=tmp_path)
    assert code == 0, err
    assert found["events"]["ceremony.completed"] == 10
    assert found["message_ids_twice"] == []


@pytest.mark.uncounted
def test_a_demo_whose_log_cannot_grow_ends_with_the_reason(tmp_path: Path) -> None:
    """As on a full disk: the limit is named, and there is no internal error and no call of the ended engine.

    Coverage is off: its files would hit the limit too, and its messages would be the last lines of the log.
    """
    few = (FILE_BYTES, FILE_BYTES)
    code, found, err = demo(
        "--count", "200", folder=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, few)
    )
    assert code == 1
    assert found["complaints"][0] == "the engine ended too early"
    assert "log_io: " in found["complaints"][1], found["complaints"]
    assert "ulimit -f" in found["complaints"][1], found["complaints"]
    assert err.splitlines()[-1].startswith("demo_failed: of 200: ")
    assert children(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--definition", "nothing"), "definition_unknown"), (("--ceremonies-dir", "/nowhere"), "definitions_missing")],
)
def test_a_demo_that_cannot_begin_prints_the_reason(arguments: tuple[str, ...], code: str, tmp_path: Path) -> None:
    """The reason is one line, and nothing was started."""
    exit_code, found, err = demo(*arguments, folder=tmp_path)
    assert (exit_code, found) == (1, {})
    assert err.splitlines()[-1].startswith(f"{code}: ")


@pytest.mark.uncounted
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing_running(number: signal.Signals, tmp_path: Path) -> None:
    """Its engine ends with it on Ctrl-C, on SIGTERM, and even on SIGKILL."""
    # specification 23.10
    process = ceremony("demo", "--count", "5000", "--folder", str(tmp_path))
    try:
        wait_for(tmp_path / "dev.json")
        time.sleep(0.5)
        running = json.loads((tmp_path / "dev.json").read_text())
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert until_gone(running["pid"])
    assert until_gone(running["nats_pid"])
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("interrupted: ")


def wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


@pytest.mark.uncounted
def test_dev_loses_nothing_when_it_is_killed(dev: DevProcess) -> None:
    """After kill -9 under load and a restart, every accepted ceremony ends."""
    # specification 18.1, 23.9
    first = dev.start()
    asyncio.run(start_many(dev.server))
    nats = first["nats_pid"]
    dev.kill()
    assert alive(nats), "the test wants the nats-server to be left over"
    second = dev.start()
    assert not alive(nats), "two servers would share one store"
    assert second["nats"] == first["nats"], "who subscribed finds it again"
    assert asyncio.run(ends(dev.server)) == {f"k{number}:s": "COMPLETED" for number in range(12)}
    assert dev.stop() == 0, dev.said
    assert children(dev.folder) == []


async def start_many(server: str) -> None:
    async with AsyncPlanningCeremonyClient(server) as client:
        for number in range(12):
            await client.start(
                "backlog_review",
                ceremony_id=f"k{number}",
                story_id="s",
                requested_by="test",
                inputs={"title": f"story {number}"},
            )


async def ends(server: str) -> dict[str, str]:
    """Approve open gates until all ceremonies have ended."""
    async with asyncio.timeout(90), AsyncPlanningCeremonyClient(server) as client:
        while True:
            page = await client.list()
            for one in page.ceremonies:
                for gate in one.open_gates:
                    await client.decide(
                        one.instance_id,
                        approved=True,
                        actor="ana",
                        role=gate.role,
                        step_id=gate.step_id,
                        visit=gate.visit,
                    )
            if all(one.status not in ("RUNNING", "WAITING_FOR_HUMAN") for one in page.ceremonies):
                return {one.instance_id: one.status for one in page.ceremonies}
            await asyncio.sleep(0.1)


@pytest.mark.uncounted
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dev_ends_cleanly_on_a_signal_and_continues_after_a_restart(number: signal.Signals, dev: DevProcess) -> None:
    """Exit 0 and no process left. The next start has the ceremonies, and NATS at the same address."""
    first = dev.start()
    asyncio.run(start_many(dev.server))
    assert dev.stop(number) == 0, dev.said
    assert "Traceback" not in dev.said
    assert until_gone(first["nats_pid"], 1)
    second = dev.start()
    assert second["nats"] == first["nats"]
    assert len(asyncio.run(listed(dev.server))) == 12
    assert dev.stop(number) == 0, dev.said


async def listed(server: str) -> list[str]:
    async with AsyncPlanningCeremonyClient(server) as client:
        return [one.instance_id for one in (await client.list()).ceremonies]


def test_a_folder_belongs_to_one_dev(dev: DevProcess) -> None:
    """A second one names the process that holds the folder, and changes nothing."""
    # specification 23.9
    running = dev.start()
    second = ceremony("dev", str(dev.folder))
    _, err = second.communicate(timeout=30)
    assert second.returncode == 1
    assert err == (
        f"folder_in_use: {dev.folder} belongs to a running `ceremony dev` (process {running['pid']}); "
        "end it, or name another folder\n"
    )
    assert alive(running["nats_pid"])
    assert json.loads((dev.folder / "dev.json").read_text()) == running


def test_clients_find_the_dev_of_their_folder(tmp_path: Path) -> None:
    """`ceremony list` needs no option in the folder of a running `ceremony dev`."""
    # specification 23.4
    dev = DevProcess(tmp_path / ".ceremony")
    try:
        dev.start()
        client = ceremony("definitions", "-o", "json", cwd=tmp_path, env={"CEREMONY_SERVER": ""})
        out, err = client.communicate(timeout=30)
        assert client.returncode == 0, err
        assert "backlog_review" in {one["name"] for one in json.loads(out)}
        assert dev.stop() == 0
    finally:
        dev.end()
