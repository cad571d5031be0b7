"""``crma methods`` lists the rows; ``crma run --method`` chooses among methods."""

from __future__ import annotations

import json

import pytest

from constrained_adapters.cli.run import chosen_methods
from constrained_adapters.config.run import DomainConfig, MethodConfig, RunConfig
from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.recipes import ALIASES, RECIPES


def test_methods_lists_every_row_with_what_it_costs(crma):
    done = crma("methods", "--json")
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows) == list(RECIPES)
    for name, row in rows.items():
        assert all(row[key] for key in ("summary", "step", "domain", "kept", "paper"))
        assert row["keeps_old_data"] == RECIPES[name].keeps_old_data
        assert row["also"] == [alias for alias, named in ALIASES.items() if named == name]


def test_the_list_names_every_row(crma):
    shown = crma("methods").stdout
    for name in [*RECIPES, *ALIASES]:
        assert name in shown


def config(*methods: dict[str, object]) -> RunConfig:
    return RunConfig(
        methods=[MethodConfig(**method) for method in methods],
        domains=[DomainConfig(name="law", data="packaged:law")],
    )


def test_a_method_is_the_files_where_it_has_the_name_and_a_recipe_else():
    run = config({"recipe": "crma", "name": "mine", "constraint_strength": 0.9}, {"recipe": "lora"})
    chosen = chosen_methods(run, ["mine", "lora+replay"])
    assert [(each.name, each.recipe) for each in chosen] == [
        ("mine", "crma"),
        ("lora + replay", "lora + replay"),
    ]
    assert chosen[0].constraint_strength == 0.9


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["crmaa"], UnknownNameError, r"'crmaa' \(--method\)(?s:.*)Try: +crma"),
        (["lora", "lora"], ConfigError, "a method is there twice"),
        (["full + olora"], ConfigError, "do not go together"),
    ],
)
def test_a_wrong_method_is_refused_before_the_run(names, error, message):
    with pytest.raises(error, match=message):
        chosen_methods(config({"recipe": "lora"}), names)
