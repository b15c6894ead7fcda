"""The client of the ceremony engine, for threads and for asyncio; the README of this distribution explains it."""

from fleet.planning_ceremony.client.async_client import AsyncPlanningCeremonyClient
from fleet.planning_ceremony.client.delivery import DeliveryOptions
from fleet.planning_ceremony.client.errors import ErrorDetails, FieldViolation, PlanningCeremonyError
from fleet.planning_ceremony.client.outbox import OutboxError
from fleet.planning_ceremony.client.stats import StartStats
from fleet.planning_ceremony.client.sync_client import PlanningCeremonyClient

__all__ = [
    "AsyncPlanningCeremonyClient",
    "DeliveryOptions",
    "ErrorDetails",
    "FieldViolation",
    "OutboxError",
    "PlanningCeremonyClient",
    "PlanningCeremonyError",
    "StartStats",
]
