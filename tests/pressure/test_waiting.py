"""The short form of ceremonies that wait with large outputs; `python -m tests.pressure --state rocks` does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import KafkaAddress
from tests.pressure.waiting import Waiting, wait_and_recover
from tests.services import KafkaServer

pytestmark = [pytest.mark.timeout(480), pytest.mark.uncounted]

WAITING = Waiting(ceremonies=300, partitions=4, patience=150.0)
# A started worker takes about 150 MiB; the rows are six.
PEAK_MIB = 260.0


def test_ceremonies_whose_rows_are_on_disk_outlive_two_kills_and_end(
    kafka: KafkaServer | KafkaAddress, tmp_path: Path
) -> None:
    waited = wait_and_recover(WAITING, tmp_path, kafka.bootstrap, CEREMONY_STATE="rocks")
    assert waited.ended == waited.ceremonies
    assert len(waited.peak_mib) == 3
    assert max(waited.peak_mib) < PEAK_MIB
