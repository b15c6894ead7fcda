"""Settings of a worker, read from the environment: names of the specification, and `CEREMONY_…` for our own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import NoDecode, SettingsConfigDict

from bridge.nats.urls import NatsUrlInvalid, server_urls
from ceremony.errors import SettingsInvalid
from ceremony.store_settings import StoreSettings
from ceremony.trace_settings import TRACE_ADDRESSES, TraceSettings
from ports.masking import masked
from steps.subjects import parse_allowlist

PROJECTOR = "projector"
# By default; the projector joins them where a store is set.
ROLES = ("engine", "bridge")
ALL_ROLES = (*ROLES, PROJECTOR)
# The neighbours that each role needs.
READINESS_OF = {
    "engine": ("log", "tables", "nats", "publications", "ray_executor"),
    "bridge": ("log", "nats"),
    PROJECTOR: ("log",),
}
READINESS_NAMES = (*READINESS_OF["engine"], "valkey", "valkey_history", "neo4j")
# A stream that one definition publishes to, and that takes nothing, is no reason to stop serving the others.
READINESS_DEFAULT = ("log", "tables", "nats", "ray_executor")
# Of a stop, after its drain.
LEAST_STOP_SECONDS = 1.0
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
LAST_PORT = 65_535
# Settings that hold an address.
ADDRESSES = frozenset(
    {"CEREMONY_LOG", "NATS_URL", "RAY_EXECUTOR_URL", "VLLM_URL", "VALKEY_HOST", "NEO4J_URI", *TRACE_ADDRESSES}
)
# Settings whose value no message shows.
SECRET = frozenset({"VALKEY_PASSWORD", "NEO4J_PASSWORD"})
_HOST_AND_PORT = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/@,:\[\]?#]+):\d{1,5}"
LOG_URL = re.compile(rf"kafka://{_HOST_AND_PORT}(?:,{_HOST_AND_PORT})*/?|sqlite:///.+")
HOST = re.compile(r"[^\s/@:\[\]]+|\[?[0-9A-Fa-f:.]+\]?")
RAY_TARGET = re.compile(rf"(?:[^\s/@]*@)?{_HOST_AND_PORT}|(?:dns|ipv4|ipv6|unix|unix-abstract|xds|passthrough):\S+")


class Settings(StoreSettings, TraceSettings):
    """Every default suits the fleet's cluster; `ceremony dev` sets its own."""

    model_config = SettingsConfigDict(extra="ignore", populate_by_name=True)

    nats_url: str = Field("nats://nats:4222", alias="NATS_URL")
    ray_executor_url: str = Field("ray-executor:50056", alias="RAY_EXECUTOR_URL")
    ray_call_timeout_seconds: float = Field(10.0, gt=0, le=3600, alias="RAY_CALL_TIMEOUT_SECONDS")
    vllm_url: str = Field("http://vllm-server:8000", alias="VLLM_URL")
    vllm_model: str = Field("meta-llama/Llama-3.1-8B-Instruct", alias="VLLM_MODEL")
    ceremonies_dir: Path = Field(Path("specs/ceremonies"), alias="CEREMONIES_DIR")
    grpc_addr: str = Field("0.0.0.0:50057", alias="PLANNING_CEREMONY_GRPC_ADDR")
    log_level: str = Field("INFO", alias="LOG_LEVEL")
    worker_id: str | None = Field(None, alias="WORKER_ID")
    publish_subjects: Annotated[tuple[str, ...], NoDecode] = Field(("ceremony.>",), alias="PUBLISH_SUBJECTS")
    readiness_requires: Annotated[tuple[str, ...], NoDecode] = Field(READINESS_DEFAULT, alias="READINESS_REQUIRES")

    log: str = Field("kafka://kafka:9092", alias="CEREMONY_LOG")
    """Address of the log: `kafka://host:port[,host:port]`, or `sqlite:///path/to/file.db` (one process, one file)."""
    topic_prefix: str = Field("ceremony", alias="CEREMONY_TOPIC_PREFIX", pattern=r"^[A-Za-z0-9_-]+$")
    partitions: int = Field(12, ge=1, le=1024, alias="CEREMONY_PARTITIONS")
    """Partitions of every topic; fixed for the life of the topics."""
    replication_factor: int = Field(1, ge=1, alias="CEREMONY_REPLICATION_FACTOR")
    stream_replicas: int = Field(1, ge=1, le=5, alias="CEREMONY_STREAM_REPLICAS")
    """Servers that hold the stream CEREMONY, where this worker makes it."""
    flush_messages: int | None = Field(None, ge=1, alias="CEREMONY_FLUSH_MESSAGES")
    """`flush.messages` of the topics this worker creates: 1 has the broker fsync every append."""
    advertised_addr: str | None = Field(None, alias="CEREMONY_ADVERTISED_ADDR")
    """Address of this worker's gRPC for other workers, `host:port`; default: its host's name and port."""
    roles: Annotated[tuple[str, ...], NoDecode] = Field(ROLES, alias="CEREMONY_ROLE")
    """The parts that run here: `engine` (agents, timers, front), `bridge` (NATS in and out), `projector` (stores)."""
    http_addr: str = Field("0.0.0.0:8080", alias="CEREMONY_HTTP_ADDR")
    log_format: str = Field("auto", pattern="^(auto|console|json)$", alias="CEREMONY_LOG_FORMAT")
    agent_concurrency: int = Field(256, ge=1, le=65_536, alias="CEREMONY_AGENT_CONCURRENCY")
    """Calls to neighbours in flight, per step kind."""
    nats_in_flight: int = Field(512, ge=1, le=65_536, alias="CEREMONY_NATS_IN_FLIGHT")
    """Events of a partition that the bridge has published and not yet seen acknowledged."""
    take_over_grace_seconds: float = Field(30.0, ge=0, le=3600, alias="CEREMONY_TAKE_OVER_GRACE_SECONDS")
    """After a take-over, step timeouts wait this long past the log end seen, so that waiting answers come first."""

    max_lag: int = Field(2_000, ge=0, alias="CEREMONY_MAX_LAG")
    """Records of a partition's commands that may wait to be folded; above it starts are refused. 0: no limit."""

    accepts_newer_fold: bool = Field(default=False, alias="CEREMONY_ACCEPT_NEWER_FOLD")
    """Fold partitions that a newer release has owned, for going back to this one."""

    row_cache_mib: int = Field(32, ge=1, le=1_048_576, alias="CEREMONY_ROW_CACHE_MIB")
    """MiB of encoded rows that are also kept decoded, which takes some four times as much again."""

    state: str = Field("memory", pattern="^(memory|rocks)$", alias="CEREMONY_STATE")
    """Storage of the rows of the partitions served here: `memory`, or `rocks` (RocksDB, on disk)."""
    state_dir: Path = Field(Path(".ceremony/state"), alias="CEREMONY_STATE_DIR")
    """Folder of this worker alone for RocksDB; its content may be deleted while the worker is stopped."""

    drain_seconds: float = Field(2.0, ge=0, le=3600, alias="CEREMONY_DRAIN_SECONDS")
    """After SIGTERM this worker is not ready and refuses starts for so long, and serves all else."""
    stop_seconds: float = Field(10.0, gt=0, le=3600, alias="CEREMONY_STOP_SECONDS")
    """From SIGTERM to the end of the process; a stop that takes longer is given up."""

    @property
    def topic_config(self) -> dict[str, str]:
        """Settings of the Kafka topics that this program creates, beside those that every topic has."""
        return {} if self.flush_messages is None else {"flush.messages": str(self.flush_messages)}

    @property
    def required(self) -> tuple[str, ...]:
        """The neighbours that decide readiness: those of `readiness_requires` that a role of this worker needs."""
        needed = {name for role in self.roles for name in READINESS_OF[role]}
        needed |= set(self.read_models) if PROJECTOR in self.roles else set()
        if "engine" in self.roles and "valkey" in self.stores:
            needed.add("valkey")  # keeps the idempotency keys of publish steps
        return tuple(name for name in self.readiness_requires if name in needed)

    @field_validator("publish_subjects", "readiness_requires", "roles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("roles")
    @classmethod
    def _roles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(ALL_ROLES)):
            raise ValueError(f"unknown: {', '.join(unknown)}; one or more of {', '.join(ALL_ROLES)}")
        if not value:
            raise ValueError(f"expected one or more of {', '.join(ALL_ROLES)}")
        return value

    @model_validator(mode="after")
    def _projects_by_default(self) -> Self:
        """Add the projector where a store is set and nobody has chosen the roles."""
        if "roles" not in self.model_fields_set and self.stores:
            self.roles = (*self.roles, PROJECTOR)
        return self

    @field_validator("publish_subjects")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return parse_allowlist(",".join(value))

    @field_validator("log")
    @classmethod
    def _log(cls, value: str) -> str:
        if not LOG_URL.fullmatch(value):
            hint = "; Kafka is reached without a user and a password" if "@" in value else ""
            raise ValueError(f"expected kafka://host:port[,host:port] or sqlite:///absolute/path/to/file.db{hint}")
        return value

    @field_validator("nats_url")
    @classmethod
    def _nats_url(cls, value: str) -> str:
        try:
            server_urls(value)
        except NatsUrlInvalid as error:
            raise ValueError(f"{error.message}; {error.remedy}") from None
        return value

    @field_validator("ray_executor_url")
    @classmethod
    def _ray_executor_url(cls, value: str) -> str:
        if not RAY_TARGET.fullmatch(value):
            raise ValueError("expected host:port, or another target of gRPC such as dns:///host:port")
        return value

    @field_validator("readiness_requires")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        value = tuple("log" if name == "kafka" else name for name in value)
        unknown = sorted(set(value) - set(READINESS_NAMES))
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; one of {', '.join(READINESS_NAMES)}")
        return value


def read_settings(options: Mapping[str, Any]) -> Settings:
    """Settings from the environment; `options`, by field name, win over it. Raises SettingsInvalid."""
    try:
        found = Settings(**options)
    except ValidationError as error:
        raise SettingsInvalid([_problem(details) for details in error.errors()]) from None
    if problems := list(_problems(found)):
        raise SettingsInvalid(problems)
    return found


def _problems(found: Settings) -> Iterator[str]:
    yield from _level_problems(found.log_level)
    yield from _address_problems(found)
    yield from _role_problems(found)
    yield from _stop_problems(found)
    yield from found.store_problems()


def _problem(details: ErrorDetails) -> str:
    """`VARIABLE: problem (it is VALUE)`."""
    # An option goes by its field's name; people know the variable.
    field = Settings.model_fields.get(str(details["loc"][0])) if details["loc"] else None
    name = (field.alias if field else None) or ".".join(map(str, details["loc"])) or "settings"
    message = masked(details["msg"].removeprefix("Value error, "))
    return f"{name}: {message}{_shown(name, details.get('input'))}"


def _shown(name: str, value: object) -> str:
    """The wrong value for a message; that of an address is not shown, for any part of it may be a password."""
    return "" if name in ADDRESSES | SECRET else f" (it is {masked(repr(value))})"


def _role_problems(found: Settings) -> Iterator[str]:
    if PROJECTOR in found.roles and not found.stores:
        yield "CEREMONY_ROLE: a projector needs a store; set VALKEY_HOST or NEO4J_URI"


def _stop_problems(found: Settings) -> Iterator[str]:
    if found.drain_seconds + LEAST_STOP_SECONDS > found.stop_seconds:
        left = f"must leave {LEAST_STOP_SECONDS:g} s of CEREMONY_STOP_SECONDS, which is {found.stop_seconds:g}"
        yield f"CEREMONY_DRAIN_SECONDS: {left} (it is {found.drain_seconds:g})"


def _level_problems(level: str) -> Iterator[str]:
    if level.upper() not in LOG_LEVELS:
        yield f"LOG_LEVEL: expected one of {', '.join(LOG_LEVELS)} (it is {masked(repr(level))})"


def _address_problems(found: Settings) -> Iterator[str]:
    """Checked here, because a library would fail on them half-way through the start with its own message."""
    given = [("PLANNING_CEREMONY_GRPC_ADDR", found.grpc_addr), ("CEREMONY_HTTP_ADDR", found.http_addr)]
    if found.advertised_addr is not None:
        given.append(("CEREMONY_ADVERTISED_ADDR", found.advertised_addr))
    for name, address in given:
        host, _, port = address.rpartition(":")
        if not HOST.fullmatch(host) or not (port.isascii() and port.isdigit()) or int(port) > LAST_PORT:
            yield f"{name}: expected host:port, for example 0.0.0.0:50057 (it is {masked(repr(address))})"
