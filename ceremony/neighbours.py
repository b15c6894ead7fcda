"""The neighbours of a worker, by its roles: how each is looked at and probed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from bridge.nats.connection import NatsConnection
from bridge.nats.events import EventsBridge
from bridge.nats.outbound import NatsOutbound
from bridge.nats.responses import AgentResponses
from bridge.projection.projector import Projector
from ceremony.neighbour import Ask, Look, Neighbour
from ceremony.settings import Settings
from ports.clock import Clock
from ports.health import OK
from ports.log import Log
from streams.partitions import Partitions
from streams.topics import COMMANDS, prefixed


class Probed(Protocol):
    """A client that can ask its neighbour whether it answers."""

    async def probe(self) -> None:
        """Raises CeremonyError."""


class Neighbours:
    """Makes the neighbours that a worker watches."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        log: Log,
        partitions: Partitions,
        nats: NatsConnection,
        bridges: Sequence[EventsBridge | AgentResponses],
        outbound: NatsOutbound,
        ray: Probed,
        projectors: Sequence[Projector[Any]],
        idempotency: Probed | None,
    ) -> None:
        self._roles = settings.roles
        self._clock = clock
        self._log = log
        self._commands = prefixed(settings.topic_prefix, COMMANDS)
        self._partitions = partitions
        self._nats = nats
        self._bridges = bridges if "bridge" in settings.roles else ()
        self._outbound = outbound
        self._ray = ray
        self._projectors = projectors
        self._idempotency = idempotency

    def all(self) -> list[Neighbour]:
        """Return the neighbours that a role of this worker needs."""
        found = [self._one("log", self._look_at_log, partial(self._log.ends, self._commands))]
        if "engine" in self._roles:
            found.append(self._one("tables", self._partitions.tables))
        if "engine" in self._roles or "bridge" in self._roles:
            found.append(self._one("nats", self._look_at_nats, self._nats.probe))
        if "engine" in self._roles:
            found.append(self._one("publications", self._look_at_publications))
            found.append(self._one("ray_executor", ask=self._ray.probe))
        found += self._stores()
        return found

    def warnings(self) -> list[str]:
        """Shortcomings that do not end readiness."""
        found = [str(one) for one in self._partitions.log_warnings()]
        return found + [one.warning for one in self._bridges if isinstance(one, EventsBridge) and one.warning]

    def _stores(self) -> Iterator[Neighbour]:
        projected = set()
        for projector in self._projectors:
            projected.add(projector.store.name)
            yield self._one(projector.store.name, partial(_look_at_store, projector), projector.store.places)
        if self._idempotency is not None and "engine" in self._roles and "valkey" not in projected:
            yield self._one("valkey", ask=self._idempotency.probe)

    def _one(self, name: str, look: Look | None = None, ask: Ask | None = None) -> Neighbour:
        return Neighbour(name, self._clock, look, ask)

    def _look_at_log(self) -> tuple[str, str]:
        return _coded("log_unavailable", [self._log.state])

    def _look_at_nats(self) -> tuple[str, str]:
        """Of the connection, and of the streams that the bridges need."""
        if not self._nats.is_connected:
            return "nats_disconnected", self._nats.state
        return _coded("nats_refuses", (bridge.state for bridge in self._bridges))

    def _look_at_publications(self) -> tuple[str, str]:
        return _coded("publications_refused", [self._outbound.state])


def _look_at_store(projector: Projector[Any]) -> tuple[str, str]:
    return _coded(f"{projector.store.name}_unavailable", [projector.state])


def _coded(code: str, states: Iterable[str]) -> tuple[str, str]:
    """Return `ok`, or the code with all the states that are not."""
    failures = [state for state in states if state != OK]
    return (code, "; ".join(failures)) if failures else (OK, OK)
