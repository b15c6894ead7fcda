"""A play that forks at a kill has the outcome of a play from the beginning, and a lost child is a failure."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.crash.tracing import ROOT

HEAD = """
import os
from functools import partial
from tests.crash.branches import branches
from tests.crash.defects import planted
from tests.crash.lives import branched, killed
from tests.crash.proof import Proof
from tests.crash.stage import stage

proof = Proof(1)
"""
FINDS = """
with stage():
    assert proof.wanted
    points = proof.deaths[::100]
    with planted("events are published without their id"):
        forked = branches(points, lambda branch: proof._judged(partial(branched, 1, branch)))
        again = {point: proof._judged(partial(killed, 1, [point])) for point in points}
assert list(forked) == points
assert all(forked.values())
assert forked == again
"""
LOSES = """
with stage():
    found = branches([3, 5], lambda branch: branched(1, lambda number: branch(number) and os._exit(7)))
assert found.keys() == {3, 5}
assert all("ended its process" in problem for (problem,) in found.values()), found
"""
RAISES = """
def judged(branch):
    branched(1, branch)
    if os.getpid() != parent:
        raise KeyError("cannot be judged")

parent = os.getpid()
with stage():
    assert branches([3], judged) == {3: ["KeyError: 'cannot be judged'"]}
"""


@pytest.mark.uncounted
@pytest.mark.parametrize("program", [FINDS, LOSES, RAISES], ids=["finds", "loses", "raises"])
def test_the_fate_of_a_child_is_reported(program: str) -> None:
    """It runs in a process of its own, because a process that forks should have no other threads."""
    command = [sys.executable, "-c", HEAD + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
