"""Normalises the names of actors and roles where they enter the engine.

The fold compares the texts and keys that the log holds, so no later version of Unicode changes a decision.
"""

from __future__ import annotations

import unicodedata

from bridge.grpc.refusals import LONGEST_NAME, invalid, require_short

# Control, format, surrogate and unassigned characters: two names that look alike may differ in them.
REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Cn"})


def normal_name(field: str, text: str) -> str:
    """Return a name trimmed and in NFC. Raises CallRefused `actor_invalid` or `field_too_long`."""
    require_short(LONGEST_NAME, **{field: text})
    name = unicodedata.normalize("NFC", text.strip())
    require_short(LONGEST_NAME, **{field: name})
    refused = next((letter for letter in name if unicodedata.category(letter) in REFUSED_CATEGORIES), None)
    if refused is not None:
        message = f"{field} holds U+{ord(refused):04X}: no control, format or unassigned character is taken"
        raise invalid("actor_invalid", message, field)
    return name


def actor_key(actor: str) -> str:
    """Return the key by which a normal name is compared: case-folded, and in NFC again."""
    return unicodedata.normalize("NFC", actor.casefold())
