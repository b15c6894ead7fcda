"""What all tests of the bridge share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from unittest.mock import patch

import pytest
import typer

from ceremony import cli


@pytest.fixture(scope="session", autouse=True)
def _one_program() -> Iterator[None]:
    """The command line is built once, and not for each of the hundreds of commands that tests run in this process."""
    with (
        patch.object(cli, "build", cache(cli.build)),
        patch.object(typer.main, "get_command", cache(typer.main.get_command)),
    ):
        yield
