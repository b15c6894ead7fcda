"""The golden log folds to the recorded bytes, in every process; a change of the fold must raise its number."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tables.effects import FOLD
from tests.releases.archive import newest_fold
from tests.tables.golden import log as golden
from tests.tables.golden.log import GoldenLog, golden_logs

ROOT = Path(__file__).parents[3]
PROCESSES = 6


@pytest.mark.parametrize("log", golden_logs(), ids=lambda log: log.path.stem)
def test_a_golden_log_folds_to_the_recorded_digests(log: GoldenLog) -> None:
    # specification 18.2
    found = log.folded()
    differing = [i for i, pair in enumerate(zip(found, log.digests, strict=True)) if pair[0] != pair[1]]
    command = log.entries[differing[0]][0] if differing else None
    assert not differing, (
        f"decide now returns something else from command {differing[0]} on ({type(command).__name__}): FOLD in "
        f"tables/effects.py must be above {newest_fold()}; then run `python -m tests.tables.golden.log renew`"
    )
    assert log.fold == FOLD


def test_the_golden_logs_fold_alike_in_every_process() -> None:
    """Python's hash seed is set; that of the C++ libraries is drawn anew by each process."""
    # specification 18.2
    children = [_folding_under(str(4242 * number)) for number in range(PROCESSES)]
    assert len({_digest_of(child) for child in children}) == 1


def test_a_renewal_is_refused_while_the_fold_number_was_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # specification 24.2
    first = golden_logs()[0].path
    shutil.copy(first, tmp_path / first.name)
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    log = golden_logs()[0]
    log.write(["0" * 64 for _ in log.entries])
    monkeypatch.setattr(golden, "FOLD", newest_fold())
    assert golden.renew() == 1
    assert "raise FOLD" in capsys.readouterr().out
    monkeypatch.setattr(golden, "FOLD", newest_fold() + 1)
    assert golden.renew() == 0
    assert golden_logs()[0].digests == golden_logs()[0].folded()


def _folding_under(hash_seed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tables.golden.log"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        text=True,
    )


def _digest_of(child: subprocess.Popen[str]) -> str:
    digest, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    return digest
