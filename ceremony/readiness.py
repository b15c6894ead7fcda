"""The state of each neighbour, as `/readyz`, gRPC health and `ceremony doctor` report it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from bridge.nats.connection import NatsConnection
from bridge.nats.events import EventsBridge
from bridge.nats.outbound import NatsOutbound
from bridge.nats.responses import AgentResponses
from bridge.projection.projector import Projector
from streams.engine import Engine


class Readiness:
    """Collects the state of each part. The Ray executor's is set by the worker's probe."""

    def __init__(
        self,
        roles: Collection[str],
        engine: Engine,
        nats: NatsConnection,
        bridges: Sequence[EventsBridge | AgentResponses],
        outbound: NatsOutbound,
        projectors: Sequence[Projector[Any]] = (),
    ) -> None:
        self.ray_state = "not asked yet"
        self._roles = roles
        self._engine = engine
        self._nats = nats
        self._bridges = bridges
        self._outbound = outbound
        self._projectors = projectors

    def states(self) -> dict[str, str]:
        """State of each neighbour that a role of this worker needs: `ok`, or the reason why not."""
        states = self._engine.partitions.readiness()
        stores = {projector.store.name: projector.state for projector in self._projectors}
        if "engine" not in self._roles:
            bridge = {"nats": self._nats_state()} if "bridge" in self._roles else {}
            return {"log": states["log"], **bridge, **stores}
        return {
            **states,
            "nats": self._nats_state(),
            "publications": self._outbound.state,
            "ray_executor": self.ray_state,
            **stores,
        }

    def warnings(self) -> list[str]:
        """Shortcomings that do not end readiness."""
        of_streams = [bridge.warning for bridge in self._bridges if isinstance(bridge, EventsBridge) and bridge.warning]
        return [str(one) for one in self._engine.partitions.log_warnings()] + of_streams

    def _nats_state(self) -> str:
        """Of the bridges; without them, of the connection that publish steps use."""
        if "bridge" not in self._roles:
            return "ok" if self._nats.is_connected else self._nats.state
        failures = [bridge.state for bridge in self._bridges if bridge.state != "ok"]
        return "; ".join(failures) or "ok"
