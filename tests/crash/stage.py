"""The setting of every play in its process: no logs, and a patch for the one seam that is not a port."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from unittest.mock import patch

import structlog

from bridge.nats import progress
from bridge.nats.connection import NatsConnection
from bridge.nats.streams import CEREMONY


async def _read_ids(connection: NatsConnection, since: datetime) -> AsyncGenerator[list[str]]:
    client: Any = await connection.connected()
    found: set[str] = await client.ids_since(CEREMONY, since)
    yield list(found)


@contextmanager
def stage() -> Iterator[None]:
    """Within the block plays write no logs: thousands of processes die here, and problems are reported separately."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.freeze()
    try:
        with patch.object(progress, "_read_ids", _read_ids):
            yield
    finally:
        logging.disable(logging.NOTSET)
        structlog.configure(**before)
