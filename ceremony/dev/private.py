"""Files and folders that only their owner may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

FOLDER_MODE, FILE_MODE = 0o700, 0o600


def make_private_folder(folder: Path, ours: str) -> None:
    """Create a folder; one that is there is made private if it is empty or holds a file `ours`. Raises OSError."""
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    found = folder.stat()
    inside = {file.name for file in folder.iterdir()}
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != FOLDER_MODE and (not inside or ours in inside):
        folder.chmod(FOLDER_MODE)


def write_private(file: Path, text: str) -> None:
    """Write a file. Raises OSError."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE), "w") as opened:  # noqa: PTH123 - of a descriptor
        os.fchmod(opened.fileno(), FILE_MODE)
        opened.write(text)
