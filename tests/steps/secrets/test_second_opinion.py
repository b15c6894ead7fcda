"""Another scanner, kingfisher, finds planted secrets, and none once they are redacted; its calls outside are off."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from steps.secrets.redactor import TextRedactor
from tests.steps.secrets.ordinary import ordinary
from tests.steps.secrets.planted import planted

PROGRAM = Path(sys.executable).with_name("kingfisher")
# It asks for more than the form of some kinds, or does not know them.
LEAST_FOUND = 40

pytestmark = [pytest.mark.uncounted, pytest.mark.timeout(300)]


def found_by_kingfisher(folder: Path, texts: Iterable[str]) -> list[Any]:
    files = folder / "files"
    files.mkdir()
    for number, text in enumerate(texts):
        (files / f"{number}.txt").write_text(text, "utf-8")
    options = ["--no-validate", "--no-update-check", "--confidence", "low", "--format", "json"]
    options += ["--rule-cache-dir", str(folder / "rules")]
    done = subprocess.run([PROGRAM, "scan", *options, str(files)], capture_output=True, text=True, check=False)
    answer, _ = json.JSONDecoder().raw_decode(done.stdout)
    findings: list[Any] = answer["findings"]
    return findings


def test_it_finds_planted_secrets(tmp_path: Path) -> None:
    found = found_by_kingfisher(tmp_path, (one.text for seed in (1, 2) for one in planted(seed)))
    assert len({finding["rule"]["id"] for finding in found}) >= LEAST_FOUND


def test_it_finds_no_secret_in_redacted_texts(tmp_path: Path) -> None:
    # specification 27.5
    redactor = TextRedactor()
    assert found_by_kingfisher(tmp_path, (redactor.text(one.text) for seed in (1, 2, 3) for one in planted(seed))) == []


def test_it_finds_no_secret_in_ordinary_proposals_either(tmp_path: Path) -> None:
    assert found_by_kingfisher(tmp_path, ordinary()) == []
