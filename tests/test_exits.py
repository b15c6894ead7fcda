"""Every way out of the engine is known by name, with the one place that redacts; a new one has to be added here."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc import redaction
from bridge.grpc.server import SERVICE, GrpcServer
from bridge.http.server import HttpServer
from bridge.nats.events import EventsBridge
from bridge.nats.republish import Republisher
from bridge.nats.window import PublishWindow
from bridge.otel.exporter import OtelSpans
from bridge.projection.histories import HistoryModel
from ceremony.build import Pipeline
from ceremony.log_lines import LogLines
from streams.ceremony_agent import CeremonyAgent
from streams.screening import ScreenedOutbound
from tables.read_model import document_of

ROOT = Path(__file__).parents[1]
# Folders of neighbours, each with the place that everything passes which goes to it.
NEIGHBOURS: Mapping[str, str] = {
    "grpc": "AnswerRedaction, the outermost interceptor of the service; calls between workers stay in the engine",
    "http": "HttpServer redacts /readyz and /metrics",
    "nats": "ScreenedOutbound for messages of publish steps, PublishWindow for events",
    "otel": "OtelSpans redacts each batch of spans",
    "ray": "not redacted: agents need the prompt",
    "valkey": "document_of redacts each row, HistoryModel each event; the idempotency store holds only keys and places",
    "neo4j": "document_of redacts each row",
    "projection": "Documents hands each row to document_of, with its definition's prompts; HistoryModel redacts events",
}


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of this name in the program, with its file."""
    for folder in ("ports", "tables", "steps", "streams", "bridge", "ceremony"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and name in (
                    getattr(node.func, "id", None),
                    getattr(node.func, "attr", None),
                ):
                    yield path.relative_to(ROOT).as_posix(), node


def test_each_neighbour_has_a_place_that_redacts() -> None:
    # specification 27.8
    folders = {path.parent.name for path in (ROOT / "bridge").glob("*/__init__.py")}
    assert folders <= NEIGHBOURS.keys(), "name the place that redacts what goes to the new neighbour"


def test_whatever_sends_needs_a_redactor() -> None:
    for sender in (
        OtelSpans,
        PublishWindow,
        EventsBridge,
        Republisher,
        GrpcServer,
        HttpServer,
        CeremonyAgent,
        HistoryModel,
        ScreenedOutbound,
        LogLines,
    ):
        parameter = inspect.signature(sender.__init__).parameters["redactor"]
        assert parameter.default is inspect.Parameter.empty, sender
    assert inspect.signature(document_of).parameters["redact"].default is inspect.Parameter.empty


def test_nothing_publishes_past_the_screened_outbound() -> None:
    # specification 27.8
    made = [(path, node) for path, node in calls("NatsOutbound")]
    assert [path for path, _ in made] == ["ceremony/build.py"]
    source = inspect.getsource(Pipeline.__init__)
    assert "ScreenedOutbound(self.sender," in source
    assert source.count("self.sender") == 2  # where it is made and where it is screened


def test_messages_of_nats_are_sent_by_two_modules_only() -> None:
    senders = {path for name in ("send_all", "publish_many") for path, _ in calls(name)}
    assert senders <= {"bridge/nats/window.py", "bridge/nats/publish.py"}
    assert {path for path, _ in calls("JetStreamPublisher")} == {
        "bridge/nats/events.py",
        "bridge/nats/outbound.py",
        "bridge/nats/republish.py",
    }


def test_every_method_of_the_service_is_redacted() -> None:
    methods = pb.DESCRIPTOR.services_by_name["PlanningCeremonyProcessor"].methods_by_name
    assert {f"/{SERVICE}/{name}" for name in methods} == redaction._ANSWERS.keys()
    source = inspect.getsource(GrpcServer.__init__)
    assert source.index("AnswerRedaction(") < source.index("RequestDecoding(") < source.index("Forwarding(")


def test_details_of_errors_are_made_in_one_place_and_redacted_with_the_metadata() -> None:
    # specification 27.9
    assert {path for path, _ in calls("encoded_status")} == {"bridge/grpc/refusals.py"}
    assert {path for path, _ in calls("redacted_status")} == {"bridge/grpc/redaction.py"}
    source = inspect.getsource(redaction.RedactingContext)
    assert source.count("self._metadata(") == 3  # at the start, at the end, and of a call that is aborted


def test_encoded_parts_of_answers_count_as_redacted_in_known_places_only() -> None:
    assert {path for path, _ in calls("CleanBytes")} == {"bridge/grpc/encoding.py", "bridge/grpc/redaction.py"}
    assert (ROOT / "bridge/grpc/listing.py").read_text("utf-8").count("CleanBytes") == 2  # imported, and rows of peers


def test_every_handler_of_the_log_redacts() -> None:
    # specification 27.10
    handlers = {path for name in ("StreamHandler", "LogHandler", "addHandler") for path, _ in calls(name)}
    assert handlers == {"ceremony/logs.py"}
    assert {path for path, _ in calls("LogLines")} == {"ceremony/build.py"}
