"""The label `definition` has at most 200 values, and `other`."""

from __future__ import annotations

from streams.label_bounds import MOST_NAMES, OTHER, BoundedNames


def test_above_the_bound_names_share_other_and_known_ones_stay() -> None:
    # specification 29.1
    names = BoundedNames()
    first = [f"d{number}" for number in range(MOST_NAMES)]
    assert [names.of(name) for name in first] == first
    assert names.of("one_more") == OTHER
    assert names.of("d7") == "d7"


def test_workers_with_the_same_definitions_admit_the_same_ones() -> None:
    """Whatever the order in which each found its files."""
    files = [f"d{number}" for number in range(10)]
    one, other = BoundedNames(5), BoundedNames(5)
    one.admit(files)
    other.admit(reversed(files))
    assert [one.of(name) for name in files] == [other.of(name) for name in files]
    assert [name for name in files if one.of(name) == name] == ["d0", "d1", "d2", "d3", "d4"]
