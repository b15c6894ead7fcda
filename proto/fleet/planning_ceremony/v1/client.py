"""The names of release 0.1.0, which had an async client only. New code imports `fleet.planning_ceremony.client`."""

from fleet.planning_ceremony.client import AsyncPlanningCeremonyClient as PlanningCeremonyClient
from fleet.planning_ceremony.client import PlanningCeremonyError

__all__ = ["PlanningCeremonyClient", "PlanningCeremonyError"]
