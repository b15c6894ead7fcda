"""NATS with JetStream."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from pathlib import Path

from ceremony.dev import nats_server
from tests.services.server import Server, free_port


class NatsServer(Server):
    """A nats-server with JetStream that syncs every write; see `ceremony/dev/nats_server.py` for the product's own."""

    name = "nats"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        self.monitor_port = free_port()

    @property
    def url(self) -> str:
        """The address for clients, `nats://127.0.0.1:port`."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return self.url

    def _command(self) -> Sequence[str]:
        config = nats_server.write_config(self.folder, self.port, self.monitor_port)
        return [nats_server.program(), "-c", str(config)]

    def _answers(self) -> bool:
        address = f"http://127.0.0.1:{self.monitor_port}/healthz?js-enabled-only=true"
        try:
            with urllib.request.urlopen(address, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
