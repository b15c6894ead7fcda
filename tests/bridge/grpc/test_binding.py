"""A server that never serves is not dropped: gRPC would log the freed object, and crash whoever keeps that record."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Iterator
from unittest import mock

import grpc.aio
import pytest

from bridge.clock import HostClock
from bridge.grpc.binding import bind
from bridge.grpc.server import GrpcServer
from bridge.grpc.servicer import Servicer
from steps.secrets.redactor import TextRedactor
from streams.turns import Turns

CORE = logging.getLogger("grpc._cython.cygrpc")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The texts that gRPC's core logs. The records themselves are dropped, for they hold freed memory."""
    texts: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        texts.append(str(record.msg))
        return False

    level = CORE.level
    CORE.addFilter(note)
    CORE.setLevel(logging.DEBUG)
    try:
        yield texts
    finally:
        CORE.setLevel(level)
        CORE.removeFilter(note)


async def test_a_server_whose_port_is_taken_is_stopped(lines: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {address} for gRPC: is the port in use"):
            await bind(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), address)
    gc.collect()
    assert [line for line in lines if "__dealloc__" in line] == []


async def test_a_worker_without_the_front_makes_no_server(lines: list[str]) -> None:
    servicer = mock.create_autospec(Servicer, instance=True)
    server = GrpcServer(servicer, "127.0.0.1:0", HostClock(), Turns(HostClock()), TextRedactor())
    await server.stop()
    del server
    gc.collect()
    assert [line for line in lines if "__dealloc__" in line] == []
