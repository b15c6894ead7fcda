"""A short form of the attacks: an attacker is answered, and no call of an honest client fails."""

from __future__ import annotations

import pytest

from tests.pressure.attacks import ATTACKS, Attacked, Waits, measure

pytestmark = [pytest.mark.timeout(240), pytest.mark.uncounted]


def test_an_honest_client_is_answered_during_an_attack() -> None:
    # specification 14.20, 22.11
    names = ["structs of 1.3 MB"]
    results = list(measure(names, seconds=0.5, rows=50, letters=100))
    assert [result.attack for result in results] == names
    for result in results:
        assert result.answers and result.during.calls and not result.during.failed, result


def test_every_kind_of_attack_has_a_name() -> None:
    assert {"diagnose", "list", "raw sockets", "structs of 4 MB", "texts of 0.5 MB"} <= set(ATTACKS)


@pytest.mark.parametrize(
    ("without", "during", "jitter", "failed", "sound"),
    [
        (30.0, 50.0, 0.0, 0, True),
        (30.0, 61.0, 0.0, 0, False),
        (22.0, 50.0, 4.0, 0, False),
        (10.0, 29.0, 18.0, 0, False),
        (10.0, 28.0, 18.0, 0, True),
        (5.0, 5.0, 0.0, 1, False),
    ],
)
def test_a_result_is_sound_when_the_p99_at_most_doubles_or_rises_by_the_jitter_and_no_call_fails(
    without: float, during: float, jitter: float, failed: int, *, sound: bool
) -> None:
    def waits(p99: float, failed: int = 0) -> Waits:
        return Waits(calls=100, failed=failed, median_ms=1.0, p99_ms=p99, worst_ms=90.0)

    assert Attacked("list", waits(without), waits(during, failed), jitter, {}).sound is sound
