"""The ceremony to which a record or message belongs, told beside its value: readers sort without decoding it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Record headers; values are UTF-8. Records of release 0.1.0 have neither.
DEFINITION = "definition"
TRACEPARENT = "traceparent"


class Provenance(NamedTuple):
    """The origin of a message. Empty fields are not known."""

    instance_id: str = ""
    definition_name: str = ""
    traceparent: str = ""
    """W3C Trace Context."""


NOWHERE = Provenance()


def provenance_of(instance_id: str, headers: Mapping[str, bytes]) -> Provenance:
    """Return the provenance of a record from its headers."""
    return Provenance(
        instance_id,
        headers.get(DEFINITION, b"").decode(errors="replace"),
        headers.get(TRACEPARENT, b"").decode(errors="replace"),
    )
