"""scripts/env.sh installs behind a company's own certificate authority, and shows progress on a terminal.

The real uv meets a real HTTPS index on loopback whose authority it does not know. No test may change the system's
certificate store, so a `uv` before it on the path plays the store: when the store is chosen, it trusts the authority.
"""

from __future__ import annotations

import hashlib
import os
import pty
import shutil
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

ENV_SCRIPT = Path(__file__).parent.parent / "scripts/env.sh"
REAL_UV = Path(sys.executable).parent / "uv"
WHEEL = "pretty_small-1.0-py3-none-any.whl"
NOT_INHERITED = ("PYTHON", "SSL_CERT_FILE", "SSL_CERT_DIR", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS")
SCRIPT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Project:
    """A small project with scripts/env.sh, a script that sources it, and a `uv` of the test's own on the path."""

    root: Path

    def uv(self, text: str) -> None:
        """Make this shell text the `uv` on the path; every call is recorded in `calls`."""
        program = self.root / "bin/uv"
        program.write_text(
            f'#!/bin/sh\necho "${{UV_SYSTEM_CERTS:-}}${{UV_NATIVE_TLS:-}} $*" >>"{self.root}/calls"\n{text}'
        )
        program.chmod(0o755)

    def installs(self) -> list[str]:
        """The calls of `uv pip sync`; each begins with the certificate option of its environment."""
        return [line for line in (self.root / "calls").read_text().splitlines() if " pip sync --python" in line]

    def run(self, stderr: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        path = f"{self.root / 'bin'}:/usr/bin:/bin"
        return subprocess.run(
            [self.root / "scripts/ready"],
            check=False,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=SCRIPT_SECONDS,
            env={**kept, "PATH": path, "PYTHON": sys.executable, **environment},
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    for folder in ("scripts", "proto", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(ENV_SCRIPT, tmp_path / "scripts")
    (tmp_path / "scripts/ready").write_text('#!/bin/sh\n. "$(dirname "$0")/env.sh"\necho ready\n')
    (tmp_path / "scripts/ready").chmod(0o755)
    for name in ("pyproject.toml", "proto/pyproject.toml", "requirements.lock"):
        (tmp_path / name).touch()
    return Project(tmp_path)


def _venv_then(text: str) -> str:
    """A uv that makes real environments and runs `text` for `pip sync`; `pip install` of our own packages succeeds."""
    return f"""
case "$*" in
    --version) echo uv 0.13.9 ;;
    venv*) exec "{REAL_UV}" "$@" ;;
    *--help*) exec "{REAL_UV}" "$@" ;;
    "pip install"*) ;;
    "pip sync"*)
        {text} ;;
esac
"""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Serve a package index on HTTPS with one wheel; give its address and its authority's certificate."""
    served = tmp_path / "served/simple/pretty-small"
    served.mkdir(parents=True)
    with zipfile.ZipFile(served / WHEEL, "w") as wheel:
        wheel.writestr("pretty_small.py", "")
        info = "pretty_small-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pretty-small\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"pretty_small.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    (served / "index.html").write_text(f'<a href="{WHEEL}">{WHEEL}</a>')
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(tmp_path / "served"))

        def log_message(self, *given: Any) -> None:
            """Requests are not logged."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *given: Any) -> None:
            """A refused certificate is expected here and not printed."""

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/simple", tmp_path / "authority.pem"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_uv_uses_the_systems_certificates_after_it_refused_one(project: Project, index: tuple[str, Path]) -> None:
    """The real uv refuses the index's certificate, and installs once it uses the system's store."""
    address, authority = index
    wheel = project.root / "served/simple/pretty-small" / WHEEL
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (project.root / "requirements.lock").write_text(f"pretty-small==1.0 --hash=sha256:{digest}\n")
    project.uv(
        _venv_then(
            f'if [ -n "${{UV_SYSTEM_CERTS:-}}" ]; then unset UV_SYSTEM_CERTS; export SSL_CERT_FILE="{authority}"; fi\n'
            f'        exec "{REAL_UV}" "$@"'
        )
    )
    done = project.run(UV_DEFAULT_INDEX=address, UV_CACHE_DIR=str(project.root / "cache"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ready\n"
    assert "invalid peer certificate" in done.stderr
    assert "trying again with the certificates of the system" in done.stderr
    assert list(project.root.glob(".venv/lib/*/site-packages/pretty_small.py"))
    assert [call.split()[0] for call in project.installs()] == ["pip", "pip", "true"]


def test_a_second_refusal_ends_the_script_with_the_reason(project: Project) -> None:
    """If the system's store does not know the authority either, there is no fourth try."""
    project.uv(_venv_then("echo 'invalid peer certificate: UnknownIssuer' >&2; exit 2"))
    done = project.run()
    assert done.returncode == 2
    assert done.stderr.endswith("uv refused a certificate, also with the certificates of the system\n")
    assert len(project.installs()) == 3


def test_the_system_store_is_not_tried_twice(project: Project) -> None:
    """A user who has already chosen the system's store sees uv's reason once, and the script ends."""
    project.uv(_venv_then("echo 'invalid peer certificate: UnknownIssuer' >&2; exit 2"))
    done = project.run(UV_SYSTEM_CERTS="true")
    assert done.returncode == 2
    assert len(project.installs()) == 2


def test_another_failure_does_not_change_the_certificates(project: Project) -> None:
    """Only after a refused certificate is the system's store tried; any other failure ends the script."""
    project.uv(_venv_then("echo 'error: no space left on device' >&2; exit 2"))
    done = project.run()
    assert done.returncode == 2
    assert "no space left on device" in done.stderr
    assert all(call.startswith(" ") for call in project.installs())


def test_an_older_uv_gets_the_older_name_of_the_option(project: Project) -> None:
    """A uv without `--system-certs` reads UV_NATIVE_TLS."""
    old = '[ -n "${UV_NATIVE_TLS:-}" ] || { echo "invalid peer certificate: UnknownIssuer" >&2; exit 2; }'
    project.uv(_venv_then(old).replace(f'*--help*) exec "{REAL_UV}" "$@"', "*--help*) echo --native-tls"))
    done = project.run()
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in project.installs()] == ["pip", "pip", "true"]


def test_a_pipe_gets_a_few_lines(project: Project) -> None:
    """Without a terminal uv is quiet and each stage is one line; the next run prints nothing."""
    project.uv(_venv_then('case "$*" in *--quiet*) ;; *) echo progress >&2 ;; esac'))
    first = project.run()
    assert first.returncode == 0, first.stderr
    assert "progress" not in first.stderr
    assert [line.partition(": ")[2].split()[0] for line in first.stderr.splitlines()] == [
        "making",
        "installing",
        "installed",
    ]
    assert project.run(PYTHON="").stderr == ""


def test_a_terminal_sees_the_installers_progress(project: Project) -> None:
    """On a terminal uv keeps its own progress bars."""
    project.uv(_venv_then('case "$*" in *--quiet*) ;; *) [ -t 2 ] && echo progress >&2 ;; esac'))
    ours, theirs = pty.openpty()
    try:
        done = project.run(stderr=theirs)
        seen = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0, seen
    assert "progress" in seen
