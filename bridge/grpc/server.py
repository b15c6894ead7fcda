"""The gRPC server: the service with its interceptors, health and reflection, and the calls between workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import add_PlanningCeremonyProcessorServicer_to_server
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from bridge.grpc.binding import bind
from bridge.grpc.decoding import RequestDecoding
from bridge.grpc.diagnosis import AllWorkersDiagnosis, DiagnosisHandler
from bridge.grpc.forwarding import Forwarding
from bridge.grpc.health import HealthAnswers
from bridge.grpc.intake import CallLimit, Intake, read_all_wakeups
from bridge.grpc.large_starts import EncodedStart
from bridge.grpc.listing import AllWorkersListing, ListingHandler
from bridge.grpc.peers import Peers
from bridge.grpc.redaction import AnswerRedaction
from bridge.grpc.refusal_pace import RefusalPace
from bridge.grpc.refusals import start_too_large
from bridge.grpc.servicer import Servicer
from bridge.grpc.timing import CallTiming
from ports.clock import Clock
from ports.redaction import Redactor
from streams.api import Directory
from streams.turns import Turns

LARGEST_MESSAGE_BYTES = 4 * 1024 * 1024
# Calls that may wait to be taken up, for a turn of the loop or two; each takes 12 KiB. Above this number gRPC ends
# random calls as CANCELLED, without a hint to the client; its own limit is 1,000.
PENDING_CALLS = 20_000
# How long a call may wait. gRPC's own limit is 30 s; on a starved machine 20,000 calls do wait that long.
PENDING_SECONDS = 120
# Connections at a time, and the time in which one has to begin as HTTP/2 (gRPC's own is two minutes): else sockets that
# send nothing take every descriptor of the process.
MOST_CONNECTIONS = 10_000
HANDSHAKE_MS = 10_000
# Starts that are taken up, let in or refused, in one turn of the loop.
STARTS_PER_TURN = 1_024
SERVICE = "fleet.planning_ceremony.v1.PlanningCeremonyProcessor"
START = f"/{SERVICE}/StartPlanningCeremony"


@dataclass(frozen=True, slots=True)
class Sharing:
    """Needed when other workers own some of the ceremonies: calls about those are forwarded."""

    directory: Directory
    new_id: Callable[[], str]
    """Makes a request id for a forwarded operation that has none."""


class GrpcServer:
    """`start` binds the address; `stop` lets calls in flight end."""

    def __init__(
        self,
        servicer: Servicer,
        address: str,
        clock: Clock,
        turns: Turns,
        redactor: Redactor,
        sharing: Sharing | None = None,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        read_all_wakeups()
        self._address = address
        self._clock = clock
        self._servicer = servicer
        self._most_connections = most_connections
        self._interceptors: list[grpc.aio.ServerInterceptor] = [
            AnswerRedaction(SERVICE, redactor),  # the first is the outermost
            CallTiming(SERVICE, clock),
            RequestDecoding(turns, RefusalPace(clock), {START: start_too_large}, {START: EncodedStart.if_large}),
        ]
        self.peers: Peers | None = None
        if sharing is not None:
            self.peers = Peers(sharing.directory.addresses)
            servicer.all_workers_listing = AllWorkersListing(sharing.directory, self.peers, clock, servicer.local_rows)
            servicer.all_workers_diagnosis = AllWorkersDiagnosis(
                sharing.directory, self.peers, clock, servicer.diagnose_here
            )
            self._interceptors.append(Forwarding(SERVICE, sharing.directory, self.peers, sharing.new_id, clock))
        self.port = 0
        self.health = HealthAnswers()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Raises OSError where the address cannot be bound."""
        await self.set_ready(ready=False)
        # Made here, not before: a worker without the role `engine` never starts it, and `bind` says what happens then.
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=[
                ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
                ("grpc.max_send_message_length", 2 * LARGEST_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.max_ping_strikes", 0),  # other workers ping to see that this one lives
                ("grpc.server.max_pending_requests", PENDING_CALLS),
                ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS),
                ("grpc.server_max_unrequested_time_in_server", PENDING_SECONDS),
                ("grpc.max_allowed_incoming_connections", self._most_connections),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ],
        )
        self.port = await bind(server, self._address)
        intake = self._serve(server)
        self._server = server
        await server.start()
        intake.start()

    def _serve(self, server: grpc.aio.Server) -> Intake:
        """Add all services."""
        servicer = self._servicer
        limits = [CallLimit(START, STARTS_PER_TURN, servicer.refuse_start)]
        intake = Intake(server, self._interceptors, self._clock, limits)
        add_PlanningCeremonyProcessorServicer_to_server(servicer, intake)  # type: ignore[arg-type]  # stands in for the server
        if self.peers is not None:
            server.add_generic_rpc_handlers(
                (ListingHandler(servicer.local_rows), DiagnosisHandler(servicer.diagnose_here))
            )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return intake

    async def set_ready(self, *, ready: bool) -> None:
        """Set the answer of `grpc.health.v1` for the server and the service, and close channels to lost workers."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        self.health.set(status, "", SERVICE)
        if self.peers is not None:
            await self.peers.prune()

    async def drain(self) -> None:
        """Answer NOT_SERVING from now on, so that load balancers choose another worker."""
        self.health.set(health_pb2.HealthCheckResponse.NOT_SERVING, "", SERVICE)

    async def stop(self, grace_seconds: float = 2.0) -> None:
        if self._server is not None:
            await self._server.stop(grace_seconds)
        if self.peers is not None:
            await self.peers.close()
