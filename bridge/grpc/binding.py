"""Binds a server of gRPC to its address."""

from __future__ import annotations

import grpc.aio


async def bind(server: grpc.aio.Server, address: str) -> int:
    """Bind a server that is not started yet, and return its port. Raises OSError; the server is stopped then.

    gRPC cannot stop a server that was never started. When such a one is freed, gRPC logs the server itself at
    DEBUG, and whoever keeps that log record keeps freed memory. So it is started first.
    """
    try:
        return server.add_insecure_port(address)
    except RuntimeError:
        await server.start()
        await server.stop(None)
        raise OSError(f"cannot listen on {address} for gRPC: is the port in use?") from None
