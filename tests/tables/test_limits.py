"""Nesting of values from outside is judged alike with and without their JSON at hand."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tables.limits import deeper_than

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text('[]{}"\\ab', max_size=6)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("[{a", max_size=3), inner, max_size=4)
)


def depth_of(value: Any) -> int:
    """Count the containers on the longest way into a value."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(value=VALUES, limit=st.integers(0, 8))
def test_a_value_is_too_deep_where_its_containers_nest_deeper_than_the_limit(value: Any, limit: int) -> None:
    assert deeper_than(value, limit) == (depth_of(value) > limit)
    assert deeper_than(value, limit, msgspec.json.encode(value)) == (depth_of(value) > limit)


def test_no_item_of_a_value_with_few_brackets_is_looked_at() -> None:
    value = {"a": [1] * 120_000, "b": "[[" * 10}
    with mock.patch("tables.limits._items", side_effect=AssertionError):
        assert not deeper_than(value, 65, msgspec.json.encode(value))


def test_brackets_in_texts_are_no_containers() -> None:
    value = ["[" * 100]
    assert not deeper_than(value, 2, msgspec.json.encode(value))


@pytest.mark.parametrize("depth", [65, 66])
def test_a_value_far_deeper_than_the_limit_is_not_followed_to_its_end(depth: int) -> None:
    value: Any = []
    for _ in range(depth - 1):
        value = {"a": value}
    assert deeper_than(value, 65) is (depth > 65)
    for _ in range(100_000):
        value = [value]
    assert deeper_than(value, 65)
    while value:  # freed level by level
        value = value[0] if isinstance(value, list) else value["a"]
