"""The pinned definitions of projected rows, read from the changelog of `definitions` where they are not known yet."""

from __future__ import annotations

from collections import OrderedDict

import structlog

from ports.errors import CeremonyError
from ports.log import Log
from streams import topics
from tables.definition import Definition
from tables.definitions.loader import load_pinned
from tables.kinds import Kinds

KEPT = 512

log = structlog.get_logger(__name__)


class PinnedDefinitions:
    """Definitions by hash. A row and its definition are committed together, in partitions of the same number."""

    def __init__(self, log: Log, kinds: Kinds, *, prefix: str) -> None:
        self._log = log
        self._kinds = kinds
        self._topic = topics.prefixed(prefix, topics.changelog(topics.DEFINITIONS))
        self._known: OrderedDict[str, Definition | None] = OrderedDict()

    async def of(self, digest: str, partition: int) -> Definition | None:
        """Return the definition; None where the log does not have it, or this release cannot read it.

        Raises LogUnavailable.
        """
        if digest not in self._known:
            text = await self._text(digest, partition)
            if text is None:  # lost from the log; it may come back with a restored ceremony
                return None
            self._keep(digest, self._loaded(text, digest))
        self._known.move_to_end(digest)
        return self._known[digest]

    def _keep(self, digest: str, definition: Definition | None) -> None:
        self._known[digest] = definition
        while len(self._known) > KEPT:
            self._known.popitem(last=False)

    async def _text(self, digest: str, partition: int) -> bytes | None:
        start, end = (await self._log.ends(self._topic))[partition]
        text: bytes | None = None
        async for records in self._log.read(self._topic, partition, start, end):
            for record in records:
                if record.key == digest.encode():
                    text = record.value
        return text

    def _loaded(self, text: bytes, digest: str) -> Definition | None:
        try:
            return load_pinned(text.decode(), digest, self._kinds)
        except (CeremonyError, UnicodeDecodeError):
            log.warning("definition_not_projected", hash=digest)
            return None
