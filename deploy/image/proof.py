"""Proves the Dockerfile without docker: runs its instructions on a file system of its own, and starts the worker in it.

As root, each stage is an overlay over this machine's files, without the checkout: COPY copies what the file
Dockerfile.dockerignore lets through, RUN runs in it with a clean environment, and the worker runs as the image's user
with a read-only root. Without the right to mount, the install script fills a folder, and the worker runs from there, as
the present user.

Not proved: the base image itself, whose Python and C library are this machine's here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "deploy/image"
READY_SECONDS = 90.0
STOP_SECONDS = 30.0
RUN_SECONDS = 900
# Of the registry and its certificates; they are the machine's, and no part of the image.
PASSED_ON = re.compile(r"PIP_\w+|UV_\w+|SSL_CERT_\w+|\w+_(?:proxy|PROXY)")
# By its place: the PATH of the image does not name it.
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
PATHS = ("/livez", "/startupz", "/readyz", "/metrics")


def say(text: str) -> None:
    print(f"== image: {text}", flush=True)


class Broken(Exception):
    """The image does not do what it promises."""


@dataclass
class Stage:
    """One FROM of the Dockerfile, with the instructions below it."""

    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def last(self, word: str) -> str:
        return next(rest for found, rest in reversed(self.instructions) if found == word)


def stages(dockerfile: str) -> list[Stage]:
    """Parse the instructions that our Dockerfile uses."""
    found: list[Stage] = []
    lines = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    for line in filter(None, map(str.strip, lines)):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append(Stage(rest.partition(" AS ")[2]))
        elif found:
            found[-1].instructions.append((word, rest.strip()))
    return found


def context() -> list[str]:
    """Return the paths that Dockerfile.dockerignore lets through."""
    lines = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    return [line[1:] for line in lines if line.startswith("!")]


def registry() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}


class Machine:
    """A file system of its own for one stage: an overlay over this machine's, in which the checkout is hidden."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        for name in ("upper", "work", "root"):
            (folder / name).mkdir(parents=True)
        options = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
        mount("-t", "overlay", "overlay", "-o", options, str(self.root))
        mount("--rbind", "/dev", str(self.root / "dev"))
        mount("-t", "proc", "proc", str(self.root / "proc"))
        self.hidden(ROOT)

    def hidden(self, path: Path) -> None:
        mount("-t", "tmpfs", "tmpfs", str(self.inside(str(path))))

    def inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def copy(self, source: Path, target: str) -> None:
        to = self.inside(target)
        to.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-R", "-P", str(source), str(to)], check=True)

    def command(self, *command: str, user: str = "") -> list[str]:
        ids = [] if not user else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"]
        return [CHROOT, str(self.root), *ids, *command]

    def run(self, line: str, environment: Mapping[str, str]) -> None:
        subprocess.run(self.command("sh", "-ec", line), env=environment, check=True, timeout=RUN_SECONDS)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def built(work: Path) -> tuple[Machine, Stage]:
    """Carry out the Dockerfile; return the machine of its last stage."""
    machines: dict[str, Machine] = {}
    found = stages((IMAGE / "Dockerfile").read_text())
    for number, stage in enumerate(found):
        machine = machines[stage.name] = Machine(work / str(number))
        # Interpreters below /root: the base image has its own at a place that everybody may read.
        machine.inside("/root").chmod(0o755)
        stage.environment = {"PATH": os.environ["PATH"], "HOME": "/root", **registry()}
        for word, rest in stage.instructions:
            begun = time.monotonic()
            if word == "COPY":
                copied(machine, machines, shlex.split(rest))
            elif word == "RUN":
                machine.run(rest, stage.environment)
            elif word == "ENV":
                stage.environment |= dict(part.split("=", 1) for part in shlex.split(rest))
            if word in ("COPY", "RUN"):
                say(f"{word} {rest} ({time.monotonic() - begun:.0f} s)")
    return machines[found[-1].name], found[-1]


def copied(machine: Machine, machines: Mapping[str, Machine], words: Sequence[str]) -> None:
    origin = next((word.partition("=")[2] for word in words if word.startswith("--from=")), None)
    source, target = [word for word in words if not word.startswith("--")]
    if origin is not None:
        machine.copy(machines[origin].inside(source), target)
    elif source == ".":
        for path in context():
            machine.copy(ROOT / path, f"{target}/{path}")
    else:
        machine.copy(ROOT / source, target)


# ---- the worker


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def settings(http: int, grpc: int, home: str, definitions: str) -> dict[str, str]:
    """A worker alone: an embedded log, and neighbours that are away."""
    return {
        "CEREMONY_LOG": f"sqlite://{home}/log.db",
        "CEREMONY_PARTITIONS": "2",
        "CEREMONY_HTTP_ADDR": f"127.0.0.1:{http}",
        "PLANNING_CEREMONY_GRPC_ADDR": f"127.0.0.1:{grpc}",
        "CEREMONIES_DIR": definitions,
        "CEREMONY_STATE": "rocks",
        "NATS_URL": "nats://127.0.0.1:1",
        "RAY_EXECUTOR_URL": "127.0.0.1:1",
        "READINESS_REQUIRES": "log,tables",
    }


def asked(port: int, path: str) -> int:
    """Return the HTTP status; 0 if nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


@contextlib.contextmanager
def serving(command: Sequence[str], environment: Mapping[str, str], port: int, folder: str) -> Iterator[int]:
    """Run the worker until the block ends; yields its process id. Its clean end is part of the proof."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=dict(environment), stdout=output, stderr=output, cwd=folder)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while asked(port, "/readyz") != HTTPStatus.OK:
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise Broken(f"the worker is not ready:\n{output.read().decode(errors='replace')[-4000:]}")
                time.sleep(0.2)
            yield process.pid
            process.send_signal(signal.SIGTERM)
            if (code := process.wait(STOP_SECONDS)) != 0:
                raise Broken(f"SIGTERM ends the worker with {code}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def judged(port: int, health: Sequence[str], environment: Mapping[str, str]) -> None:
    """Ask every endpoint of the probes, and the health check of the image."""
    statuses = {path: asked(port, path) for path in PATHS}
    say(f"HTTP statuses: {statuses}")
    if wrong := {path: status for path, status in statuses.items() if status != HTTPStatus.OK}:
        raise Broken(f"these do not answer 200: {wrong}")
    if subprocess.run(health, env=dict(environment), check=False).returncode != 0:
        raise Broken("the health check calls a running worker unhealthy")
    nobody = dict(environment) | {"CEREMONY_HTTP_ADDR": f"127.0.0.1:{free_port()}"}
    if subprocess.run(health, env=nobody, check=False).returncode == 0:
        raise Broken("the health check calls a worker healthy that does not answer")


def proved_alone() -> None:
    """As root: the whole image."""
    mount("--make-rprivate", "/")
    work = Path(tempfile.mkdtemp(prefix="ceremony-image-"))
    mount("-t", "tmpfs", "tmpfs", str(work))
    machine, stage = built(work)
    user = stage.last("USER").partition(":")[0]
    if user in ("", "0", "root"):
        raise Broken("the image runs as root")
    machine.copy(ROOT / "specs/ceremonies", "/etc/ceremony/definitions")
    port = free_port()
    environment = stage.environment | settings(
        port, free_port(), "/var/lib/ceremony", "/etc/ceremony/definitions/ceremonies"
    )
    home = machine.inside("/var/lib/ceremony")
    mount("-o", "remount,ro", str(machine.root))
    mount("-t", "tmpfs", "-o", f"uid={user},gid={user},mode=750", "tmpfs", str(home))
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(machine.inside("/tmp")))  # noqa: S108 - the image's own
    health = machine.command(*json.loads(stage.last("HEALTHCHECK").partition("CMD")[2]), user=user)
    start = machine.command(*json.loads(stage.last("ENTRYPOINT")), *json.loads(stage.last("CMD")), user=user)
    with serving(start, environment, port, "/") as process:
        owner = Path(f"/proc/{process}").stat().st_uid
        if str(owner) != user:
            raise Broken(f"the worker runs as user {owner}")
        judged(port, health, environment)
        for path in ("/opt/ceremony/written", "/etc/written", "/written"):
            tried = subprocess.run(machine.command("touch", path), capture_output=True, text=True, check=False)
            if "Read-only file system" not in tried.stderr:
                raise Broken(f"{path} can be written")
    say(f"the worker ran as user {user} on a read-only root, and ended with 0")


def proved_in_a_folder() -> None:
    """Without the right to mount."""
    with tempfile.TemporaryDirectory(prefix="ceremony-image-") as name:
        folder = Path(name)
        destination, home = folder / "opt", folder / "home"
        home.mkdir()
        clean = {"PATH": os.environ["PATH"], "HOME": name, **registry()}
        command = ["sh", str(IMAGE / "install"), str(ROOT), str(destination)]
        subprocess.run(command, env=clean, check=True, timeout=RUN_SECONDS, cwd=name)
        subprocess.run(["chmod", "-R", "a-w", str(destination)], check=True)
        try:
            port = free_port()
            environment = clean | settings(port, free_port(), str(home), str(ROOT / "specs/ceremonies"))
            python = str(destination / "bin/python")
            with serving([str(destination / "bin/ceremony"), "serve"], environment, port, str(home)):
                judged(port, [python, "-I", str(destination / "healthy.py"), "/livez"], environment)
        finally:
            subprocess.run(["chmod", "-R", "u+w", str(destination)], check=True)
    say("the installation ran from a folder that it could not write; as no root, the whole image was not tried")


def may_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


def main() -> int:
    if sys.argv[1:] == ["alone"]:
        proved_alone()
        return 0
    if may_mount():
        command = ["unshare", "--mount", "--fork", sys.executable, __file__, "alone"]
        return subprocess.run(command, check=False).returncode
    proved_in_a_folder()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Broken, subprocess.CalledProcessError) as failure:
        print(f"image: {failure}", file=sys.stderr)
        sys.exit(1)
