"""Arguments of a newcomer that cannot be right: refused at once, in plain words."""

from __future__ import annotations

import pytest

from ceremony.cli.errors import Exit
from ceremony.cli.options import Status
from ceremony.program import run
from tables.instance import CeremonyStatus

NOWHERE = ("--server", "127.0.0.1:1")


def test_the_command_line_knows_every_status() -> None:
    assert {str(one) for one in Status} == {str(one) for one in CeremonyStatus}


@pytest.mark.parametrize("verb", [["list"], *([one, "--all", "--yes"] for one in ("cancel", "pause", "resume"))])
def test_an_unknown_status_is_refused_with_the_known_ones(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before, nothing matched: `list` showed no ceremonies, and `cancel --all` ended with 0 of 0 and exit code 0."""
    # specification 23.1
    assert run([*verb, "--status", "PASUED", *NOWHERE]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "'PASUED' is not one of" in said and "'paused'" in said
    assert run([*verb, "--status", "paused", *NOWHERE]) == Exit.UNAVAILABLE


@pytest.mark.parametrize("address", ["http://localhost:50057", ":1", "localhost", "localhost:x", "a/b:1", "h:99999"])
def test_an_address_that_is_none_is_refused_before_a_call(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before, `http://…` was called, and the engine could not be reached."""
    assert run(["list", "--server", address]) == Exit.USAGE
    assert capsys.readouterr().err == f"server_malformed: {address!r} is not host:port\n"


def test_a_wrong_value_is_told_in_words_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "-o", "xml"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "'xml' is not one of 'table', 'json', 'yaml'" in said
    assert "Value error" not in said
