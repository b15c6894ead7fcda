"""The number of descriptors that this process may open: raised at the start, and half of it left to gRPC's clients."""

from __future__ import annotations

import resource

import structlog

# Descriptors that a worker asks for. Each connection of a client takes one, and so does each file of the rows on disk.
WANTED = 65_536
# A worker that may open fewer warns: a few hundred clients could keep all others out.
FEW = 4_096

log = structlog.get_logger(__name__)


def raise_limit() -> None:
    """Raise the soft limit as far as the hard one allows, to at most WANTED."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if limit() < FEW:
        log.warning("few_descriptors", limit=limit(), wanted=WANTED, todo="raise the hard limit of open files")


def limit() -> int:
    """The number of descriptors that this process may open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def left_to_clients() -> int:
    """Connections that clients may hold; the other half is for the log, the neighbours and the files."""
    return limit() // 2
