"""Masks user names and passwords in addresses, wherever an address may reach a log, an answer or a screen."""

from __future__ import annotations

import re

MASK = "***"

# The user and password of a URL, as far as the last `@` of the word. A path (`sqlite:///a@b.db`) has none.
_OF_URL = re.compile(r"(?<=://)(?!/)[^\s'\"`]*@")
# The same without a scheme, before `host:port` or the end of a word.
_BARE = re.compile(r"(?<![^\s'\"`(=,])[^\s/@:'\"`(=]*:(?!//)[^\s@'\"`]*@(?=[A-Za-z\[][\w.\[\]:-]*|\d+(?:\.\d+){3})")


def masked(text: str) -> str:
    """The text with the user and the password of each address in it replaced by `***`."""
    if "@" not in text:
        return text
    return _BARE.sub(f"{MASK}@", _OF_URL.sub(f"{MASK}@", text))


def masked_address(address: str) -> str:
    """The address without a user and a password, also one without a scheme or a colon; a path stays as it is."""
    scheme, has_scheme, rest = address.rpartition("://")
    if rest.startswith("/") or "@" not in rest:
        return masked(address)
    scheme = scheme.rpartition("@")[2] if "@" in scheme else scheme
    return f"{scheme}{has_scheme}{MASK}@{rest.rpartition('@')[2]}"


def masked_urls(text: str) -> str:
    """The text with those of each URL replaced: ids such as `c1:s1/2/1@3` look like an address without a scheme."""
    return _OF_URL.sub(f"{MASK}@", text) if "@" in text else text
