"""Settings from the environment: names and defaults of the specification, and errors that name the variable."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ceremony.errors import SettingsInvalid
from ceremony.settings import Settings, read_settings

# Variable → (field, default).
CONTRACT = {
    "NATS_URL": ("nats_url", "nats://nats:4222"),
    "RAY_EXECUTOR_URL": ("ray_executor_url", "ray-executor:50056"),
    "VLLM_URL": ("vllm_url", "http://vllm-server:8000"),
    "VLLM_MODEL": ("vllm_model", "meta-llama/Llama-3.1-8B-Instruct"),
    "CEREMONIES_DIR": ("ceremonies_dir", Path("specs/ceremonies")),
    "PLANNING_CEREMONY_GRPC_ADDR": ("grpc_addr", "0.0.0.0:50057"),
    "LOG_LEVEL": ("log_level", "INFO"),
    "RAY_CALL_TIMEOUT_SECONDS": ("ray_call_timeout_seconds", 10.0),
    "PUBLISH_SUBJECTS": ("publish_subjects", ("ceremony.>",)),
    "READINESS_REQUIRES": ("readiness_requires", ("log", "tables", "nats", "ray_executor")),
}


def settings() -> Settings:
    """Settings as a worker reads them."""
    told: dict[str, Any] = {}
    return Settings(**told)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables of ours that are set outside."""
    for field in Settings.model_fields.values():
        monkeypatch.delenv(str(field.alias), raising=False)


@pytest.mark.parametrize("variable", CONTRACT)
def test_defaults_are_those_of_the_specification(variable: str) -> None:
    # specification 14.1, 22.1
    field, default = CONTRACT[variable]
    assert Settings.model_fields[field].alias == variable
    assert getattr(settings(), field) == default


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("NATS_URL", "nats://127.0.0.1:1", "nats_url", "nats://127.0.0.1:1"),
        ("CEREMONIES_DIR", "/etc/ceremonies", "ceremonies_dir", Path("/etc/ceremonies")),
        ("RAY_CALL_TIMEOUT_SECONDS", "2.5", "ray_call_timeout_seconds", 2.5),
        ("PUBLISH_SUBJECTS", "ceremony.>, fleet.*.done", "publish_subjects", ("ceremony.>", "fleet.*.done")),
        ("READINESS_REQUIRES", "kafka,nats", "readiness_requires", ("log", "nats")),
        ("READINESS_REQUIRES", "log", "readiness_requires", ("log",)),
        ("CEREMONY_ROLE", "bridge", "roles", ("bridge",)),
        ("CEREMONY_STATE", "rocks", "state", "rocks"),
        ("CEREMONY_STATE_DIR", "/var/lib/ceremony", "state_dir", Path("/var/lib/ceremony")),
        ("CEREMONY_ROLE", "bridge", "required", ("log", "nats")),
        ("CEREMONY_ROLE", "engine", "required", ("log", "tables", "nats", "ray_executor")),
        ("CEREMONY_LOG", "sqlite:///tmp/x.db", "log", "sqlite:///tmp/x.db"),
        ("CEREMONY_PARTITIONS", "3", "partitions", 3),
        ("WORKER_ID", "w-1", "worker_id", "w-1"),
        ("CEREMONY_TAKE_OVER_GRACE_SECONDS", "0", "take_over_grace_seconds", 0.0),
    ],
)
def test_settings_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: Any
) -> None:
    # specification 22.1, 22.3
    monkeypatch.setenv(variable, text)
    assert getattr(settings(), field) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CEREMONY_PARTITIONS", "0"),
        ("CEREMONY_PARTITIONS", "many"),
        ("CEREMONY_PARTITIONS", "1025"),
        ("RAY_CALL_TIMEOUT_SECONDS", "0"),
        ("RAY_CALL_TIMEOUT_SECONDS", "-1"),
        ("CEREMONY_TOPIC_PREFIX", "a.b"),
        ("CEREMONY_TOPIC_PREFIX", ""),
        ("CEREMONY_LOG_FORMAT", "xml"),
        ("CEREMONY_STATE", "disk"),
        ("CEREMONY_REPLICATION_FACTOR", "0"),
        ("CEREMONY_FLUSH_MESSAGES", "0"),
        ("CEREMONY_AGENT_CONCURRENCY", "0"),
        ("CEREMONY_TAKE_OVER_GRACE_SECONDS", "-1"),
        ("READINESS_REQUIRES", "kafka,redis"),
        ("PUBLISH_SUBJECTS", "ceremony..x"),
        ("PUBLISH_SUBJECTS", "ceremony.>.x"),
        ("CEREMONY_LOG", "redis://somewhere"),
        ("CEREMONY_LOG", "kafka://no-port"),
        ("CEREMONY_LOG", "sqlite://"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    """There is one error, about this variable alone."""
    # specification 22.2
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValidationError) as caught:
        settings()
    assert [error["loc"] for error in caught.value.errors()] == [(variable,)]


def test_an_unknown_readiness_name_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READINESS_REQUIRES", "redis")
    with pytest.raises(ValidationError, match="redis; one of log, tables, nats, publications, ray_executor, valkey"):
        settings()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("LOG_LEVEL", "LOUD"),
        ("PLANNING_CEREMONY_GRPC_ADDR", "no port"),
        ("PLANNING_CEREMONY_GRPC_ADDR", ":50057"),
        ("CEREMONY_HTTP_ADDR", "127.0.0.1:http"),
        ("CEREMONY_HTTP_ADDR", "127.0.0.1:65536"),
        ("CEREMONY_DRAIN_SECONDS", "9.5"),
        ("CEREMONY_PARTITIONS", "many"),
    ],
)
def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    # specification 22.2
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsInvalid) as caught:
        read_settings({})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{variable}: ") and text in problem and "\n" not in problem


def test_the_page_of_settings_lists_every_variable_with_its_default() -> None:
    # specification 22.1
    page = (Path(__file__).parents[2] / "docs/settings.md").read_text()
    listed: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", page, re.MULTILINE):
        listed.update(zip(names.split(", "), defaults.split(", "), strict=True))
    ours = {f"`{field.alias}`": written(field.default) for field in Settings.model_fields.values()}
    assert {name: default.strip("`") for name, default in listed.items()} == ours


def written(default: Any) -> str:
    """A default in the notation of the page."""
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


@pytest.mark.parametrize(
    ("variables", "stores"),
    [
        ({}, ()),
        ({"VALKEY_HOST": ""}, ()),
        ({"VALKEY_HOST": "valkey"}, ("valkey",)),
        ({"NEO4J_URI": "bolt://neo4j:7687", "NEO4J_PASSWORD": "x"}, ("neo4j",)),
        ({"VALKEY_HOST": "::1", "NEO4J_URI": "neo4j+s://db.example:7687", "NEO4J_PASSWORD": "x"}, ("valkey", "neo4j")),
    ],
)
def test_a_store_is_on_only_where_its_address_is_set(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], stores: tuple[str, ...]
) -> None:
    # specification 25.3
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert read_settings({}).stores == stores


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"VALKEY_HOST": "redis://u:hunter2@valkey"}, "VALKEY_HOST: expected a host without"),
        ({"VALKEY_HOST": "valkey:6379"}, "VALKEY_HOST: expected a host without"),
        ({"NEO4J_URI": "bolt://neo4j:hunter2@neo4j:7687", "NEO4J_PASSWORD": "x"}, "NEO4J_URI: expected bolt://"),
        ({"NEO4J_URI": "http://neo4j:7474", "NEO4J_PASSWORD": "x"}, "NEO4J_URI: expected bolt://"),
        ({"NEO4J_URI": "bolt://neo4j:7687"}, "NEO4J_PASSWORD: required, there is no default"),
        ({"VALKEY_HOST": "v", "VALKEY_PASSWORD": "hunter2", "VALKEY_PASSWORD_FILE": "/x"}, "VALKEY_PASSWORD: is set"),
        ({"VALKEY_HOST": "v", "VALKEY_PASSWORD_FILE": "/no/such"}, "VALKEY_PASSWORD_FILE: cannot be read (No such"),
    ],
)
def test_a_store_that_cannot_work_is_one_line_without_a_password(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], problem: str
) -> None:
    # specification 22.2, 25.3
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as caught:
        read_settings({})
    (line,) = caught.value.problems
    assert line.startswith(problem)
    assert "hunter2" not in str(caught.value)


def test_the_projector_runs_by_default_where_a_store_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # specification 25.3
    monkeypatch.setenv("VALKEY_HOST", "valkey")
    found = read_settings({})
    assert found.roles == ("engine", "bridge", "projector")
    assert "valkey" not in found.required
    monkeypatch.setenv("READINESS_REQUIRES", "log,valkey,neo4j")
    assert read_settings({}).required == ("log", "valkey")
    monkeypatch.setenv("CEREMONY_ROLE", "engine")
    assert read_settings({}).roles == ("engine",)
    assert read_settings({}).required == ("log", "valkey")  # it keeps the idempotency keys
    monkeypatch.setenv("CEREMONY_ROLE", "bridge")
    assert read_settings({}).required == ("log",)


def test_a_password_file_is_read_again_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # specification 25.3
    file = tmp_path / "password"
    file.write_text("first\n")
    monkeypatch.setenv("VALKEY_HOST", "valkey")
    monkeypatch.setenv("VALKEY_PASSWORD_FILE", str(file))
    password = read_settings({}).valkey_secret
    assert password.read() == "first"
    file.write_text("hunter2\n")
    assert password.read() == "hunter2"
    assert "hunter2" not in repr(read_settings({}))
