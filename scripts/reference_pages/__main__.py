"""Writes docs/reference/; with `--check` only names the pages that are not as the code makes them, and exits 1."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from scripts.reference_pages.cli_page import cli_page
from scripts.reference_pages.definition_page import definition_page
from scripts.reference_pages.errors_page import errors_page
from scripts.reference_pages.events_page import events_page
from scripts.reference_pages.grpc_page import grpc_page
from scripts.reference_pages.settings_page import settings_page
from scripts.reference_pages.source import ROOT

FOLDER = ROOT / "docs/reference"
PAGES: Mapping[str, Callable[[], str]] = {
    "definition.md": definition_page,
    "errors.md": errors_page,
    "cli.md": cli_page,
    "settings.md": settings_page,
    "grpc.md": grpc_page,
    "events.md": events_page,
}


def stale(write: bool = False) -> list[str]:  # noqa: FBT001, FBT002 - one switch
    """Return the names of the pages that differ from the code, which are then written if wanted."""
    found = []
    for name, made in PAGES.items():
        path, text = FOLDER / name, made()
        if not path.exists() or path.read_text("utf-8") != text:
            found.append(name)
            if write:
                FOLDER.mkdir(exist_ok=True)
                path.write_text(text, "utf-8")
    return found


def main(arguments: Sequence[str]) -> int:
    check = "--check" in arguments
    found = stale(write=not check)
    for name in found:
        print(f"docs/reference/{name}: " + ("not as the code makes it; run scripts/docs" if check else "written"))
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
