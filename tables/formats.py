"""Tells records of a newer release from broken ones, by their format number alone."""

from __future__ import annotations

import msgspec

from tables.errors import FormatTooNew


class _Head(msgspec.Struct):
    format: int


_head = msgspec.json.Decoder(_Head)


def refuse_newer(value: bytes, noun: str, ours: int) -> None:
    """Raise FormatTooNew when an undecodable `value` has a format above `ours`; return when it is broken."""
    try:
        found = _head.decode(value).format
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if found > ours:
        raise FormatTooNew(noun, found, ours)
