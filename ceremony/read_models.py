"""The read models of a worker: the stores that its settings name, and a projector for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge.projection.definitions import PinnedDefinitions
from bridge.projection.documents import Documents
from bridge.projection.projector import Projector
from ceremony.settings import PROJECTOR, Settings
from ceremony.valkey import valkey_address
from ports.clock import Clock
from ports.log import Log
from ports.redaction import Redactor
from streams.topics import CEREMONIES, changelog, prefixed
from tables.definition import Definition
from tables.kinds import Kinds
from tables.read_model import Redact

if TYPE_CHECKING:
    from bridge.projection.dual_writes import Ledger
    from bridge.projection.store import SourceStore


def stores(settings: Settings) -> Sequence[SourceStore]:
    """Return the stores that are on. The client of a store is loaded only where it is used."""
    found: list[SourceStore] = []
    topic = prefixed(settings.topic_prefix, changelog(CEREMONIES))
    if (valkey := valkey_address(settings)) is not None:
        from bridge.valkey.store import ValkeyStore  # noqa: PLC0415

        found.append(ValkeyStore(valkey, topic=topic))
    if settings.neo4j_uri is not None:
        from bridge.neo4j.client import Neo4jAddress  # noqa: PLC0415
        from bridge.neo4j.store import Neo4jStore  # noqa: PLC0415

        neo4j = Neo4jAddress(
            settings.neo4j_uri, settings.neo4j_user, settings.neo4j_database, settings.neo4j_secret.read
        )
        found.append(Neo4jStore(neo4j, topic=topic))
    return found


def projectors(settings: Settings, log: Log, kinds: Kinds, redactor: Redactor, clock: Clock) -> Sequence[Projector]:
    """Return a projector for each store that is on, where this worker has the role."""
    if PROJECTOR not in settings.roles:
        return ()
    documents = documents_of(settings, log, kinds, redactor, clock)
    return [
        Projector(
            log,
            store,
            documents,
            clock,
            prefix=settings.topic_prefix,
            partitions=settings.partitions,
            ledger=_ledger(settings),
        )
        for store in stores(settings)
    ]


def _ledger(settings: Settings) -> Ledger | None:
    """Return the ledger of failed writes, which only Valkey keeps."""
    address = valkey_address(settings)
    if address is None:
        return None
    from bridge.valkey.ledger import ValkeyLedger  # noqa: PLC0415

    return ValkeyLedger(address)


def documents_of(settings: Settings, log: Log, kinds: Kinds, redactor: Redactor, clock: Clock) -> Documents:
    """Return the maker of documents, redacted as at every exit, with the prompts of their own definitions."""

    def redact_by(definition: Definition | None) -> Redact:
        return redactor.of(() if definition is None else definition.prompts).encoded

    return Documents(PinnedDefinitions(log, kinds, prefix=settings.topic_prefix), redact_by, clock)
