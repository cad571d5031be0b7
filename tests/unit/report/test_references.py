"""Bounds, and methods that are told the domain, are shown but not ranked."""

from __future__ import annotations

import pytest

from constrained_adapters.recipes import RECIPES, combine
from constrained_adapters.report.measures import REFERENCES, is_reference

from .factory import make_method


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [("joint", True), ("joint + full", True), ("separate + houlsby", True), ("lora + replay", False)],
)
def test_a_combination_with_a_reference_is_one(recipe, expected):
    assert is_reference(make_method(recipe)) is expected


def test_every_recipe_that_is_told_the_domain_is_a_reference():
    told = {row.name for row in RECIPES.values() if combine([row]).scored == "alone"}
    assert told | {"base", "joint"} == REFERENCES
