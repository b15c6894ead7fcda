"""Settings of traces: OpenTelemetry's own variables, as far as the engine has to know them.

The exporter reads all others of the kind itself: headers, certificates, sampler, queue. Its protocol is fixed.
"""

from __future__ import annotations

import re

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

TRACE_ADDRESSES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
ENDPOINT = re.compile(r"https?://[^\s/]+(?:/\S*)?")
PROTOCOL = "http/protobuf"


class TraceSettings(BaseSettings):
    """The part of the settings that switches the export of spans on. A blank variable is an unset one."""

    otlp_endpoint: str | None = Field(None, alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    otlp_traces_endpoint: str | None = Field(None, alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    otlp_protocol: str | None = Field(None, alias="OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp_traces_protocol: str | None = Field(None, alias="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    traces_exporter: str | None = Field(None, alias="OTEL_TRACES_EXPORTER")
    otel_disabled: str | None = Field(None, alias="OTEL_SDK_DISABLED")

    @property
    def exports_spans(self) -> bool:
        """True where an exporter is set and not switched off."""
        is_off = self.otel_disabled == "true" or self.traces_exporter == "none"
        return (self.otlp_endpoint or self.otlp_traces_endpoint) is not None and not is_off

    @field_validator("otlp_endpoint", "otlp_traces_endpoint", mode="before")
    @classmethod
    def _endpoint(cls, value: object) -> object:
        text = _text(value)
        if text is not None and not ENDPOINT.fullmatch(text):
            raise ValueError("expected http://host:port or https://host:port")
        return text

    @field_validator("otlp_protocol", "otlp_traces_protocol", mode="before")
    @classmethod
    def _protocol(cls, value: object) -> object:
        return _one_of(value, PROTOCOL)

    @field_validator("traces_exporter", mode="before")
    @classmethod
    def _exporter(cls, value: object) -> object:
        return _one_of(value, "otlp", "none")

    @field_validator("otel_disabled", mode="before")
    @classmethod
    def _disabled(cls, value: object) -> object:
        return _one_of(value, "true", "false")


def _text(value: object) -> str | None:
    return (str(value).strip() or None) if value is not None else None


def _one_of(value: object, *known: str) -> str | None:
    text = _text(value)
    if text is not None and text.lower() not in known:
        raise ValueError(f"expected {' or '.join(known)}")
    return None if text is None else text.lower()
