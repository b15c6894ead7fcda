"""The command lines of the two Java servers, with archives of their classes that halve the time of a start."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.java_install import JavaInstall, locked, progress
from tests.services.server import Server

JVM_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Xlog:disable",
    "-Xlog:all=error",
)
MADE_ARCHIVE = "made.jsa"


def java(install: JavaInstall, heap: str) -> list[str]:
    """Return the start of a Java command line on the jars, with the class data archive if there is one."""
    archive = [f"-XX:SharedArchiveFile={install.archive}"] if install.archive.exists() else []
    return [install.java, heap, *JVM_FLAGS, *archive, "-cp", install.classpath]


def with_archive(install: JavaInstall, server: Callable[[Path, JavaInstall], Server]) -> JavaInstall:
    tried = install.archive.with_suffix(".tried")
    if not install.archive.exists() and not tried.exists():
        with locked(install.archive.with_suffix(".lock")):
            if not install.archive.exists():
                _make_archive(install, server)
                tried.touch()
    return install


def _make_archive(install: JavaInstall, server: Callable[[Path, JavaInstall], Server]) -> None:
    """Run a server once and let Java record the classes it loaded: later starts take half the time.

    If Java cannot do that, the server starts more slowly.
    """
    with tempfile.TemporaryDirectory(prefix="ceremony-archive-") as folder:
        once = server(Path(folder), install)
        progress(f"preparing {once.name} for fast starts, once per user")
        once.start()
        Server.stop(once)
        made = once.folder / MADE_ARCHIVE
        if made.exists():
            scratch = install.archive.with_suffix(".new")
            shutil.copyfile(made, scratch)
            scratch.rename(install.archive)


def archives_into(folder: Path) -> str:
    return f"-XX:ArchiveClassesAtExit={folder / MADE_ARCHIVE}"
