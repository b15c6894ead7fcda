"""The files that come with the program: example ceremonies, the JSON Schema of a definition, the template of `init`.

Examples and schema lie in `specs/`: in a checkout a link to the folder of that name, in a wheel a copy of it.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

# Folder of definitions by default, relative to the current folder.
USUAL_FOLDER = Path("specs/ceremonies")
SCHEMA_NAME = "ceremony-definition.schema.json"


def examples_folder() -> Path:
    """The folder of the example ceremonies, `<name>.yaml`."""
    return _specs() / "ceremonies"


def schema_text() -> str:
    """The JSON Schema of a ceremony definition."""
    return (_specs() / SCHEMA_NAME).read_text("utf-8")


def template_text() -> str:
    """The template of `ceremony init`."""
    return (_package() / "first_ceremony.yaml").read_text("utf-8")


def _specs() -> Path:
    return _package() / "specs"


def _package() -> Path:
    # A wheel is always unpacked, so the resources are files.
    return Path(str(files("ceremony")))


def folder_to_try(named: Path | None) -> Path:
    """The definitions of `ceremony dev` and `ceremony demo`: the folder named, else CEREMONIES_DIR, else the usual one.

    Without any of them, the examples. A server never falls back to examples: a missing mount must show.
    """
    if named is not None:
        return named
    if given := os.environ.get("CEREMONIES_DIR"):
        return Path(given)
    return USUAL_FOLDER if USUAL_FOLDER.is_dir() else examples_folder()
