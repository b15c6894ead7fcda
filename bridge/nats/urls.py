"""Reads the setting NATS_URL: one address of a server, or several separated by commas."""

from __future__ import annotations

from urllib.parse import urlsplit

from ports.errors import CeremonyError

SCHEMES = ("nats", "tls", "ws", "wss")
REMEDY = "nats://[user:password@]host:port is wanted, or several with commas; percent-encode / and @ of a password"


class NatsUrlInvalid(CeremonyError, ValueError):
    """The setting is no address of a NATS server; the text does not repeat it, as it may hold a password."""

    def __init__(self, problem: str) -> None:
        super().__init__("nats_url_invalid", problem, place="NATS_URL", remedy=REMEDY)


def server_urls(setting: str) -> list[str]:
    """The addresses in the setting. Raises NatsUrlInvalid: nats-py would fail on some only while it connects."""
    found = [part.strip() for part in setting.split(",") if part.strip()]
    if not found:
        raise NatsUrlInvalid("no server is named")
    for url in found:
        _check(url if "://" in url else f"nats://{url}")
    return found


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise NatsUrlInvalid("the host or the port of an address cannot be read") from None
    if parts.scheme not in SCHEMES:
        raise NatsUrlInvalid(f"the scheme of an address is none of {', '.join(SCHEMES)}")
    if not host or port == 0 or any(map(str.isspace, url)) or parts.netloc.count("@") > 1:
        raise NatsUrlInvalid("an address names no host, or it has white space, or its password an @")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise NatsUrlInvalid("an address has something after host and port, or its password has a / or a #")
