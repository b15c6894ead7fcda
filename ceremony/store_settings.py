"""Settings of the read models, Valkey and Neo4j. One is on only where its address is set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from ceremony.errors import SettingsInvalid

# A scheme that ends in `+s` or `+ssc` has the driver use TLS.
NEO4J_URI = re.compile(r"(?:bolt|neo4j)(?:\+s|\+ssc)?://(?:\[[0-9A-Fa-f:.]+\]|[^\s/@,:\[\]?#]+)(?::\d{1,5})?/?")
VALKEY_HOST = re.compile(r"[^\s/@:\[\]]+|[0-9A-Fa-f:.]+")


class StoreSettings(BaseSettings):
    """The part of the settings that names the stores."""

    valkey_host: str | None = Field(None, alias="VALKEY_HOST")
    valkey_port: int = Field(6379, ge=1, le=65_535, alias="VALKEY_PORT")
    valkey_db: int = Field(0, ge=0, alias="VALKEY_DB")
    valkey_password: SecretStr | None = Field(None, alias="VALKEY_PASSWORD")
    valkey_password_file: Path | None = Field(None, alias="VALKEY_PASSWORD_FILE")
    """Read again at each connection, so that a password may change while the worker runs."""
    neo4j_uri: str | None = Field(None, alias="NEO4J_URI")
    neo4j_user: str = Field("neo4j", alias="NEO4J_USER")
    neo4j_password: SecretStr | None = Field(None, alias="NEO4J_PASSWORD")
    neo4j_password_file: Path | None = Field(None, alias="NEO4J_PASSWORD_FILE")
    neo4j_database: str | None = Field(None, alias="NEO4J_DATABASE")
    """None: the user's default database."""

    @property
    def stores(self) -> tuple[str, ...]:
        """The read models that are on: `valkey`, `neo4j`."""
        addresses = {"valkey": self.valkey_host, "neo4j": self.neo4j_uri}
        return tuple(name for name, address in addresses.items() if address is not None)

    @property
    def read_models(self) -> tuple[str, ...]:
        """The names of what a projector keeps in these stores."""
        return (*self.stores, "valkey_history") if "valkey" in self.stores else self.stores

    @property
    def valkey_secret(self) -> Password:
        return Password("VALKEY_PASSWORD", self.valkey_password, self.valkey_password_file)

    @property
    def neo4j_secret(self) -> Password:
        return Password("NEO4J_PASSWORD", self.neo4j_password, self.neo4j_password_file)

    @field_validator(
        "valkey_host",
        "valkey_password",
        "valkey_password_file",
        "neo4j_uri",
        "neo4j_password",
        "neo4j_password_file",
        "neo4j_database",
        mode="before",
    )
    @classmethod
    def _blank_is_unset(cls, value: object) -> object:
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("valkey_host")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        if value is not None and not VALKEY_HOST.fullmatch(value):
            raise ValueError("expected a host without scheme, port and password")
        return value

    @field_validator("neo4j_uri")
    @classmethod
    def _uri(cls, value: str | None) -> str | None:
        if value is not None and not NEO4J_URI.fullmatch(value):
            raise ValueError("expected bolt://host:port or neo4j://host:port, without a user and a password")
        return value

    def store_problems(self) -> Iterator[str]:
        """Yield a line for each setting of a store that is on and cannot work."""
        for name, secret in (("valkey", self.valkey_secret), ("neo4j", self.neo4j_secret)):
            if name in self.stores:
                yield from secret.problems(is_required=name == "neo4j")


class Password:
    """A password from a variable, or from a file that is read again each time."""

    def __init__(self, variable: str, value: SecretStr | None, file: Path | None) -> None:
        self._variable = variable
        self._value = value
        self._file = file

    def read(self) -> str:
        """Return the present password, empty if there is none. Raises SettingsInvalid where the file is unreadable."""
        if self._file is None:
            return "" if self._value is None else self._value.get_secret_value()
        try:
            return self._file.read_text().strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise SettingsInvalid([f"{self._variable}_FILE: cannot be read ({reason})"]) from None

    def problems(self, *, is_required: bool) -> Iterator[str]:
        if self._value is not None and self._file is not None:
            yield f"{self._variable}: is set beside {self._variable}_FILE; set one of them"
            return
        try:
            password = self.read()
        except SettingsInvalid as error:
            yield from error.problems
            return
        if is_required and not password:
            yield f"{self._variable}: required, there is no default; or set {self._variable}_FILE"
