"""Wrong settings of the verbs that run an engine: one line for each, and nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from ceremony.cli.errors import Exit
from ceremony.program import run

WRONG = [
    (["--log", "BAD"], "setting_invalid: CEREMONY_LOG: expected kafka://"),
    (["--grpc-addr", "here"], "setting_invalid: PLANNING_CEREMONY_GRPC_ADDR: expected host:port"),
    (["--http-addr", "1"], "setting_invalid: CEREMONY_HTTP_ADDR: expected host:port"),
    (["--topic-prefix", "a.b"], "setting_invalid: CEREMONY_TOPIC_PREFIX: "),
    (["--latency", "-1"], "knob_invalid: latency is -1.0"),
    (["--ceremonies-dir", "nowhere"], "definitions_missing: nowhere: there is no such folder"),
]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("options", "line"), WRONG)
def test_dev_makes_nothing_before_all_settings_are_right(
    options: list[str], line: str, empty: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # specification 22.2
    assert run(["dev", *options]) in {Exit.FAILED, Exit.USAGE}
    assert capfd.readouterr().err.startswith(line)
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(("options", "line"), [*WRONG, (["--nope"], "Usage: ceremony dev")])
def test_demo_checks_the_options_that_it_passes_on(
    options: list[str], line: str, empty: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # specification 22.2
    assert run(["demo", "-n", "1", "--folder", "kept", "--", *options]) in {Exit.FAILED, Exit.USAGE}
    said = capfd.readouterr()
    assert said.err.startswith(line)
    assert (said.out, list(empty.iterdir())) == ("", [])


def test_demo_shows_the_options_that_it_passes_on(empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--", "--help"]) == Exit.OK
    assert "--duplicate-rate" in capfd.readouterr().out
    assert list(empty.iterdir()) == []


def test_a_wrong_variable_is_found_as_early_as_a_wrong_option(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # specification 22.2
    monkeypatch.setenv("CEREMONY_MAX_LAG", "much")
    for verb in (["serve"], ["dev"], ["demo", "-n", "1", "--folder", "kept"]):
        assert run(verb) == Exit.FAILED
        assert capfd.readouterr().err.startswith("setting_invalid: CEREMONY_MAX_LAG: ")
    assert list(empty.iterdir()) == []


def test_a_place_that_cannot_be_used_is_named(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The system's own words name neither the file nor the address."""
    (empty / "file").touch()
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    serve = ["serve", "--grpc-addr", "127.0.0.1:0"]
    assert run([*serve, "--http-addr", "127.0.0.1:0", "--log", f"sqlite://{empty}/file/log.db"]) == Exit.FAILED
    assert f"cannot_start: {empty}/file: " in capfd.readouterr().err
    assert run([*serve, "--http-addr", "name.invalid:80", "--log", f"sqlite://{empty}/log.db"]) == Exit.FAILED
    assert "cannot_start: cannot listen on name.invalid:80 for HTTP: " in capfd.readouterr().err
