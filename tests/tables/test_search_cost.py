"""The search for a command that is too dear, short and by the count alone; the long form is a program of its own."""

from __future__ import annotations

from random import Random

import pytest

from tables.limits import MAX_INPUTS_BYTES
from tables.work import MOST_STEPS
from tests.tables.search_cost import INPUT_BYTES, Recipe, costs_of, search

DEAR = [
    Recipe(["inputs.a.all(x, x >= 0) && false"], 100, "numbers", 10_000, [], 1, {}),
    Recipe(["inputs.a.filter(x, true).size() < 0"], 60, "numbers", 900, [], 1, {}),
    Recipe([], 1, "wide", 3000, ["aggregation_deep_merge", "aggregation_unique"], 40, {}),
    Recipe([], 1, "numbers", 10_000, ["publish_one"], 40, {"type": "number"}),
    Recipe([], 1, "texts", 3000, ["publish_many"], 300, {}),
    Recipe(["inputs.nope == 1"], 180, "emoji", 10, ["aggregation_merge"], 300, {}),
    Recipe(["inputs.nope == 1"], 1, "deep", 10, ["aggregation_merge"], 1000, {}),
]


@pytest.mark.parametrize("recipe", DEAR, ids=lambda recipe: recipe.shape)
def test_a_dear_command_is_counted_and_stays_below_its_bound(recipe: Recipe) -> None:
    # specification 20.3
    start = costs_of(recipe)[0]
    assert MOST_STEPS // 2 < start.steps <= MOST_STEPS


def test_no_command_passes_its_bound() -> None:
    # specification 20.3
    found = [cost.steps for cost in search(Random(7), rounds=40)]
    assert len(found) > 20 and max(found) <= MOST_STEPS
    assert INPUT_BYTES < MAX_INPUTS_BYTES
