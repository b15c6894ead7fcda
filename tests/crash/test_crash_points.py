"""One ceremony with every kind of step, a retry, a timeout and a gate, with a kill at every await."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.crash.defects import DEFECTS, planted
from tests.crash.proof import Proof, report, strided
from tests.crash.stage import stage
from tests.crash.tracing import ROOT

pytestmark = [pytest.mark.timeout(300), pytest.mark.uncounted]
SEED = int(os.environ.get("CEREMONY_CRASH_SEED", "1"))
# Points tried with the long outage; `python -m tests.crash --all` tries all.
BUDGET = int(os.environ.get("CEREMONY_CRASH_POINTS", "40"))


@pytest.fixture(autouse=True)
def on_stage() -> Iterator[None]:
    with stage():
        yield


@pytest.fixture(scope="module")
def proof() -> Proof:
    print(f"seed {SEED}")
    with stage():
        made = Proof(SEED)
        assert made.wanted is not None
    return made


def test_the_uninterrupted_play_covers_every_case(proof: Proof) -> None:
    """All five kinds of step run; one fails once, times out once, and is requested three times."""
    subjects = [subject for _, subject, _ in proof.wanted.told]
    assert subjects.count("ceremony.step.retrying") == 2
    assert subjects.count("ceremony.step.executed") == 6, "five steps, and the gate that opened"
    assert subjects[-1] == "ceremony.completed"
    assert len(proof.wanted.tasks) == 4
    assert len(proof.wanted.published) == 1


def test_the_same_seed_gives_the_same_play(proof: Proof) -> None:
    """The same seed gives the same play, to the number of its awaits and the bytes of its log."""
    again = Proof(proof.seed)
    assert again.points == proof.points
    assert again.whole.around.broker.records == proof.whole.around.broker.records


def test_every_await_that_tracing_counts_is_a_point(proof: Proof, capsys: pytest.CaptureFixture[str]) -> None:
    trace = proof.trace()
    with capsys.disabled():
        counted = f"tracing counts {trace.awaits} awaits at {len(trace.sites)} lines"
        print(f"\ncrash points, seed {SEED}: {proof.points}; {counted}")
    assert proof.points == trace.awaits
    assert proof.points > 500
    waited = {site.rpartition(":")[0] for site in trace.sites}
    assert {
        "streams/transport/partition/part.py",
        "streams/transport/partition/checkpoints.py",
        "streams/timers.py",
        "bridge/nats/events.py",
        "steps/agent.py",
    } <= waited


@pytest.mark.timeout(600)
def test_a_kill_at_any_await_changes_no_byte(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, effects and messages are equal byte by byte. It runs in a process of its own, which forks at each await."""
    # specification 9.6, 16.4, 18.2, 18.4
    command = [sys.executable, "-m", "tests.crash", "--kills", "--seed", str(SEED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(f"\n{done.stdout.strip()}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_a_kill_and_an_outage_beyond_the_duplicate_window_change_no_byte(proof: Proof) -> None:
    """JetStream has forgotten the message ids, so the bridge reads the stream back."""
    # specification 16.7
    stride, offset = strided(SEED, len(proof.deaths), BUDGET)
    done = report(proof.away(stride, offset))
    assert not done.found, str(done)


def test_a_message_whose_acknowledgement_is_in_the_log_is_not_sent_again(proof: Proof) -> None:
    """Not at any death since the publish step began, with JetStream having forgotten the message's id."""
    # specification 9.6
    done = report(proof.away_while_publishing())
    assert done.plays > 20
    assert not done.found, str(done)


def test_a_message_whose_acknowledgement_is_in_the_store_is_not_sent_again() -> None:
    """Not at any of these deaths either, though its command was not appended any more."""
    # specification 9.11
    done = report(Proof(SEED, with_store=True).away_while_publishing())
    assert done.plays > 20
    assert not done.found, str(done)


def test_a_second_kill_at_random_changes_no_byte(proof: Proof) -> None:
    done = report(proof.pairs(40))
    assert not done.found, str(done)


def test_a_zombie_does_no_harm(proof: Proof) -> None:
    """It goes on beside the process that took over, until both are asked to stop."""
    # specification 18.5
    done = report(proof.zombies(50))
    assert not done.found, str(done)


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_a_planted_defect_is_found(proof: Proof, defect: str) -> None:
    """The proof can fail, and does for each wrong order of writes."""
    with planted(defect):
        done = report(proof.finding(defect), enough=1)
    print(f"found after {done.plays} plays: {done}")
    assert done.found, f"not found by {done.plays} plays"
