"""The short form of the storm, with more starts at once than the limits allow; `python -m tests.pressure` does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import KafkaAddress
from tests.pressure.storm import Storm, Weathered, weather
from tests.services import KafkaServer

pytestmark = [pytest.mark.timeout(240), pytest.mark.uncounted]

# A limit so low that starts run into it even with a slow client: three at a time are too many.
STORM = Storm(starts=400, at_once=400, channels=2, partitions=1, max_lag=2, patience=150.0)
# A started worker takes about 150 MiB, the calls of this storm some 25, and its rows a few.
PEAK_MIB = 260.0


@pytest.fixture(params=["kafka", "sqlite"])
def weathered(request: pytest.FixtureRequest, tmp_path: Path) -> Weathered:
    if request.param == "sqlite":
        return weather(STORM, tmp_path, f"sqlite:///{tmp_path}/log.db")
    kafka: KafkaServer | KafkaAddress = request.getfixturevalue("kafka")
    return weather(STORM, tmp_path, f"kafka://{kafka.bootstrap}")


def test_refused_starts_come_back_and_all_end_in_bounded_memory(weathered: Weathered) -> None:
    """The only refusal is RESOURCE_EXHAUSTED with a hint; every start is in the tables in its last state, once."""
    # specification 22.6
    assert weathered.refused > 0, "the lag never passed its limit: this proves nothing"
    assert (weathered.without_hint, weathered.other_answers) == (0, {})
    assert weathered.found == weathered.ended == weathered.starts
    assert weathered.peak_mib < PEAK_MIB
