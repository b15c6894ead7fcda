"""Records of a newer release: told apart from broken ones, whatever else of them can no longer be read."""

from __future__ import annotations

import msgspec

from tables.errors import FormatTooNew


class _Head(msgspec.Struct):
    format: int


_head = msgspec.json.Decoder(_Head)


def refuse_newer(value: bytes, what: str, ours: int) -> None:
    """Raises FormatTooNew where an undecodable `value` has a format above `ours`; else it is broken, and we return."""
    try:
        found = _head.decode(value).format
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if found > ours:
        raise FormatTooNew(what, found, ours)
