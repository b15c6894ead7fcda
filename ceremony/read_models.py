"""The read models of a worker: rows and histories in the stores that its settings name, each with a projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bridge.projection.definitions import PinnedDefinitions
from bridge.projection.documents import Documents
from bridge.projection.dual_writes import DualWrites
from bridge.projection.histories import HistoryModel
from bridge.projection.projector import Projector
from bridge.projection.rows import RowModel
from ceremony.settings import PROJECTOR, Settings
from ceremony.valkey import valkey_address
from ports.clock import Clock
from ports.log import Log
from ports.redaction import Redactor
from streams.outages import NeighbourOutage
from streams.topics import CEREMONIES, EVENTS, changelog, prefixed
from tables.definition import Definition
from tables.kinds import Kinds
from tables.read_model import Redact

if TYPE_CHECKING:
    from bridge.projection.dual_writes import Ledger
    from bridge.projection.store import PlacedStore, SourceStore
    from bridge.valkey.history import ValkeyHistories
    from ports.history import HistoryCopy


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


def histories(settings: Settings) -> ValkeyHistories | None:
    """Return the store of histories, which only Valkey has; None where it is off."""
    if (address := valkey_address(settings)) is None:
        return None
    from bridge.valkey.history import ValkeyHistories  # noqa: PLC0415

    return ValkeyHistories(address, topic=prefixed(settings.topic_prefix, EVENTS))


def history_copy(settings: Settings) -> HistoryCopy | None:
    """Return the copy of the events that histories are read from where the log has them no more."""
    if (address := valkey_address(settings)) is None:
        return None
    from bridge.valkey.history import ValkeyHistoryCopy  # noqa: PLC0415

    return ValkeyHistoryCopy(address, topic=prefixed(settings.topic_prefix, EVENTS))


def followers_of(settings: Settings, name: str) -> Sequence[PlacedStore]:
    """Return all that is kept in the store of this name, each with places of its own."""
    found: list[PlacedStore] = [store for store in stores(settings) if store.name == name]
    if name == "valkey" and (kept := histories(settings)) is not None:
        found.append(kept)
    return found


def projectors(
    settings: Settings,
    log: Log,
    kinds: Kinds,
    redactor: Redactor,
    clock: Clock,
    valkey_outage: NeighbourOutage | None = None,
) -> Sequence[Projector[Any]]:
    """Return a projector for each read model that is on, where this worker has the role.

    `valkey_outage` is shared by all that is kept in Valkey.
    """
    if PROJECTOR not in settings.roles:
        return ()
    prefix, partitions = settings.topic_prefix, settings.partitions
    documents = documents_of(settings, log, kinds, redactor, clock)
    found: list[Projector[Any]] = []
    for store in stores(settings):
        failed = DualWrites(log, _ledger(settings), clock, store=store.name, prefix=prefix, partitions=partitions)
        model = RowModel(store, documents, failed, prefix=prefix)
        outage = valkey_outage if store.name == "valkey" else None
        found.append(Projector(log, model, clock, partitions=partitions, outage=outage))
    if (kept := histories(settings)) is not None:
        events = HistoryModel(kept, redactor, clock, prefix=prefix)
        found.append(Projector(log, events, clock, partitions=partitions, outage=valkey_outage))
    return found


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
