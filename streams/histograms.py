"""A Prometheus histogram that is counted many at a time, without a lock or a call for each observation.

The client's own costs a microsecond and a half for each, a tenth of a step's fold. Counts are plain lists here, because
observations and scrapes run in the same event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Observations:
    """The observations with the same labels."""

    __slots__ = ("bounds", "counts", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        """Upper bounds of all buckets but the last, which has none."""
        self.counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0
        """The sum of all observations."""

    def add(self, seconds: float, count: int = 1) -> None:
        """Add `count` observations of this duration; one below zero, by clocks that differ, counts as zero."""
        if seconds > 0:
            self.counts[bisect_left(self.bounds, seconds)] += count
            self.seconds += seconds * count
        else:
            self.counts[0] += count


class BatchHistogram:
    """A histogram of durations in seconds, as a collector of Prometheus."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets_seconds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self._bounds = tuple(buckets_seconds)
        self._buckets = [*map(floatToGoString, self._bounds), "+Inf"]
        self._of: dict[tuple[str, ...], Observations] = {}
        if not labels:
            self.of()
        registry.register(self)

    def of(self, *labels: str) -> Observations:
        """Return the observations with these values of the labels."""
        found = self._of.get(labels)
        if found is None:
            found = self._of[labels] = Observations(self._bounds)
        return found

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Name the histogram to the registry."""
        yield HistogramMetricFamily(self.name, self.documentation, labels=self.labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Return all samples, for a scrape."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labels)
        for labels, found in self._of.items():
            buckets = list(zip(self._buckets, accumulate(found.counts), strict=True))
            family.add_metric(labels, buckets, found.seconds)
        yield family
