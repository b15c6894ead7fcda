"""How far the events of a partition have been sent: what a bridge leaves to the next one with its committed offset.

A crash of the engine puts effects into `events` again, at higher offsets but with the same (command offset, ordinal):
of each fold they rise, so what is not above the highest that was sent has been sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import msgspec
import structlog

from ports.log import Committed, Record
from streams import topics

FOLDS_KEPT = 16
"""Of so many newest folds the highest is kept: an engine that old sends nothing any more."""
LONGEST_NUMBER = 18

log = structlog.get_logger(__name__)

Place = tuple[int, int]
"""Offset of the command, and the effect's ordinal among its effects."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[int, Place]).decode


class Marks:
    """The highest place that was sent, by fold."""

    def __init__(self, highest: dict[int, Place] | None = None) -> None:
        self._highest = highest or {}

    @classmethod
    def of(cls, note: str) -> Self:
        """From a note; one that is not ours says nothing, and duplicates are found by their ids then."""
        if not note:
            return cls()
        try:
            return cls(_decode(note.encode()))
        except (msgspec.DecodeError, UnicodeEncodeError):
            log.warning("note_of_bridge_undecodable", note=note[:100])
            return cls()

    @property
    def note(self) -> str:
        newest = sorted(self._highest)[-FOLDS_KEPT:]
        return _encode({fold: self._highest[fold] for fold in newest}).decode()

    def copy(self) -> Marks:
        return Marks(dict(self._highest))

    def passed(self, headers: Mapping[str, bytes]) -> bool:
        """Whether the effect of a record with these headers was sent before; if not, it counts as sent from now on."""
        found = place_of(headers)
        if found is None:
            return False
        fold, place = found
        if place <= self._highest.get(fold, (-1, -1)):
            return True
        self._highest[fold] = place
        return False


def place_of(headers: Mapping[str, bytes]) -> tuple[int, Place] | None:
    """Fold and place of a record of `events`; None where its headers do not say."""
    fold, offset, ordinal = headers.get(topics.FOLD), headers.get(topics.COMMAND_OFFSET), headers.get(topics.ORDINAL)
    if not (fold and offset and ordinal and fold.isdigit() and offset.isdigit() and ordinal.isdigit()):
        return None
    if len(fold) > LONGEST_NUMBER or len(offset) > LONGEST_NUMBER or len(ordinal) > LONGEST_NUMBER:
        return None
    return int(fold), (int(offset), int(ordinal))


@dataclass(slots=True)
class Share:
    """What a bridge knows of a partition since it was given it."""

    marks: Marks
    end: int
    """Log end when it was given: what is behind it no former owner can have sent."""
    looked: float = -math.inf
    """When what the stream holds of it was read back last, by the monotonic clock; infinite: never, or never again."""
    stored: set[str] = field(default_factory=set)
    """Ids that the stream was seen to hold."""

    @classmethod
    def taken(cls, committed: Committed) -> Self:
        return cls(Marks.of(committed.note), committed.end)

    def begin(self, first: Record) -> None:
        """A batch begins with this record; behind the former owner's reach there is nothing to remember."""
        if first.offset >= self.end:
            self.looked = math.inf
            self.stored = set()

    def looked_back(self, at: float) -> None:
        """What the stream held at this time is in `stored`, or in the duplicate window."""
        self.looked = max(self.looked, at)
