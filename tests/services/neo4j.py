"""Neo4j."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from neo4j import GraphDatabase
from neo4j.exceptions import DriverError, Neo4jError

from tests.java_install import NEO4J, JavaInstall, install
from tests.services.java import archives_into, java, with_archive
from tests.services.server import READY_SECONDS, STORE_PASSWORD, Server, ServiceError

HEAP = "-Xmx512m"


class Neo4jServer(Server):
    """A Neo4j that listens for Bolt only. Its end takes ten seconds in good order, so it is always killed."""

    name = "neo4j"
    user = "neo4j"

    def __init__(self, folder: Path, port: int | None = None, password: str = STORE_PASSWORD) -> None:
        super().__init__(folder, port)
        self.password = password

    @property
    def uri(self) -> str:
        """The address for clients, `bolt://127.0.0.1:port`."""
        return f"bolt://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"bolt://{self.user}:{self.password}@127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.kill()

    def forget(self) -> None:
        """Delete all data; the server must not run."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _command(self) -> Sequence[str]:
        return self._command_of(installed_neo4j())

    def _command_of(self, install: JavaInstall, *flags: str) -> Sequence[str]:
        config = self.folder / "conf"
        config.mkdir(exist_ok=True)
        (config / "neo4j.conf").write_text("".join(f"{key}={value}\n" for key, value in self._settings().items()))
        program, *rest = java(install, HEAP)
        if not (self.folder / "data" / "dbms" / "auth.ini").exists():
            self._set_password([program, *rest])
        folders = [f"--home-dir={self.folder}", f"--config-dir={config}"]
        return [program, *flags, *rest, "org.neo4j.server.CommunityEntryPoint", *folders]

    def _set_password(self, program: Sequence[str]) -> None:
        tool = [*program, "org.neo4j.cli.AdminTool", "dbms", "set-initial-password", self.password]
        environment = {**os.environ, "NEO4J_HOME": str(self.folder), "NEO4J_CONF": str(self.folder / "conf")}
        done = subprocess.run(tool, env=environment, check=False, capture_output=True, text=True, timeout=READY_SECONDS)
        if done.returncode:
            raise ServiceError(f"neo4j cannot set its password: {done.stdout[-500:]} {done.stderr[-500:]}")

    def _settings(self) -> dict[str, object]:
        address = f"127.0.0.1:{self.port}"
        return {
            "server.bolt.listen_address": address,
            "server.bolt.advertised_address": address,
            "server.http.enabled": "false",
            "server.https.enabled": "false",
            "server.memory.pagecache.size": "32m",
            "dbms.usage_report.enabled": "false",
        }

    def _answers(self) -> bool:
        with socket.socket() as probe:  # a driver would wait longer
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            with (
                GraphDatabase.driver(self.uri, auth=(self.user, self.password), connection_timeout=5) as driver,
                driver.session() as session,
            ):
                return bool(session.run("RETURN true AS there").single(strict=True)["there"])
        except (DriverError, Neo4jError):
            return False


def installed_neo4j() -> JavaInstall:
    """Return Neo4j from the user's cache, as `installed_kafka` does."""
    return with_archive(install(NEO4J), _ArchivingNeo4j)


class _ArchivingNeo4j(Neo4jServer):
    """The same of Neo4j."""

    def __init__(self, folder: Path, install: JavaInstall) -> None:
        super().__init__(folder)
        self._install = install

    def _command(self) -> Sequence[str]:
        return self._command_of(self._install, archives_into(self.folder))
