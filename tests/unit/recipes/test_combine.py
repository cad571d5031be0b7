"""Rows merge question by question; what makes no sense is refused with the reason."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from constrained_adapters.config.crma import PENALTY_WEIGHT
from constrained_adapters.config.run import MethodConfig
from constrained_adapters.errors import ConfigError, UnknownNameError
from constrained_adapters.recipes import (
    ALIASES,
    RECIPES,
    combine,
    effective_settings,
    find_recipe,
    penalty_weights,
    recipe_names,
)
from constrained_adapters.recipes.effective import ACTS_ON
from constrained_adapters.recipes.settings import users_of


def answers(recipe: str):
    return find_recipe(MethodConfig(recipe=recipe))


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_alone_is_what_it_says(name):
    row, merged = RECIPES[name], combine([RECIPES[name]])
    assert merged.name == name
    assert merged.trained == (row.trained or row.usual or "adapters")
    assert merged.keeps_old_data == row.keeps_old_data
    assert merged.constraint == (row.constraint or "none")
    assert len(merged.bounds) == len(row.bounds)


def test_penalties_and_rehearsals_add_up_and_the_default_answers_the_rest():
    merged = answers("olora + stm + replay + ewc + distillation")
    assert (merged.trained, merged.scored, merged.constraint) == ("adapters", "together", "none")
    assert merged.penalties == ("ewc_lora", "olora")
    assert merged.rehearsals == ("replay",)
    assert merged.keeps_old_data and merged.objectives == ("distillation", "stm")
    both = answers("crma + replay + ewc_lora")
    assert (both.constraint, both.start, both.strength, both.bounds) == (
        "fisher",
        "inputs",
        RECIPES["crma"].strength,
        ("ewc_lora",),
    )


def test_ewc_holds_all_weights_alone_and_the_update_of_adapters():
    assert (answers("ewc").trained, answers("ewc").penalties) == ("weights", ("ewc",))
    assert (answers("replay + ewc").trained, answers("replay + ewc").penalties) == ("weights", ("ewc",))
    on_adapters = answers("lora + ewc")
    assert (on_adapters.trained, on_adapters.penalties) == ("adapters", ("ewc_lora",))
    assert answers("ewc + ewc_lora").penalties == ("ewc_lora",)  # one penalty, named twice


def test_examples_are_kept_for_replay_and_for_their_gradients():
    kept = [row.name for row in RECIPES.values() if combine([row]).keeps_examples]
    assert kept == ["gem", "agem", "replay"]
    assert answers("joint").keeps_old_data and not answers("joint").keeps_examples
    assert not answers("stm + general_text").keeps_old_data


def test_of_a_lora_a_domain_the_product_is_what_old_gradients_are_of():
    assert answers("ogd").bounds == ("ogd_lora",) and answers("full + ogd").bounds == ("ogd",)
    assert answers("online_ewc + lora").bounds == ("online_ewc_lora",)
    assert penalty_weights(MethodConfig(recipe="online_ewc + lora")) == {"online_ewc_lora": 1000.0}


def test_bottlenecks_are_trained_on_or_a_set_a_domain():
    assert answers("houlsby").trains_on and answers("houlsby + ewc").penalties == ("ewc",)
    assert not answers("separate + houlsby").trains_on
    assert answers("bitfit + ewc").trains_on and not answers("progressive").trains_on
    assert not answers("bitfit").resizable and answers("houlsby").resizable


def test_the_order_of_the_names_does_not_matter():
    for pair in itertools.permutations(["lora", "replay", "ewc", "olora"]):
        merged = combine([RECIPES[name] for name in pair])
        assert {**vars(merged), "name": ""} == {**vars(answers("lora + replay + ewc + olora")), "name": ""}


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("olora + full", "'olora' and 'full' do not go together: what is trained has one answer"),
        ("crma + full", "'crma' and 'full' do not go together: what is trained has one answer"),
        ("crma + orthogonal", "'crma' and 'orthogonal' do not go together: how memories bind a step"),
        ("osf + lora", "'osf' and 'lora' do not go together: what is trained has one answer"),
        ("osf + ewc", "PEFT's tuner projects the gradient of 'osf' itself, and 'ewc' would undo that"),
        ("osf + gem", "PEFT's tuner projects the gradient of 'osf' itself, and 'gem' would undo that"),
        ("osf + replay + agem", "and 'agem' would undo that"),
        ("progressive + ewc", "'ewc' would protect what nothing can harm"),
        ("isolation + crma", "'fisher' would protect what nothing can harm"),
        ("isolation + full", "'isolation' and 'full' do not go together: what is trained"),
        ("joint + separate", "'joint' learns one model for all domains, so none has its own"),
        ("freeze_important + lora", "so there is none for 'freeze_important'"),
        ("ewc + online_ewc", "'ewc' and 'online_ewc' are one penalty twice"),
        ("lora + ewc_lora + online_ewc", "are one penalty twice"),
        ("joint + gem", "there is no finished domain for 'gem'"),
        ("separate + agem", "'agem' would protect what nothing can harm"),
        ("gem_predicted + crma", "how memories bind a step has one answer"),
        ("separate + full", "no domain has its own"),
        ("bitfit + houlsby", "'bitfit' and 'houlsby' do not go together: what is trained"),
        ("base + replay", "'base' trains nothing, so nothing can be added to it"),
        ("joint + replay", "'joint' has all data already, 'replay' adds none to it"),
        ("joint + ewc", "there is no finished domain for 'ewc"),
        ("separate + ewc", "'ewc' would protect what nothing can harm"),
        ("separate + crma", "'fisher' would protect what nothing can harm"),
        ("separate + replay", "need not know the others' examples"),
        ("lora + replay + lora", "'lora' is there twice"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(recipe, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        answers(recipe)
    assert error.value.got and error.value.expected
    assert recipe.split(" + ")[0] in error.value.got


def test_names_are_read_in_any_spacing_and_an_unknown_one_has_its_nearest():
    assert recipe_names("crma+ replay") == ["crma", "replay"]
    assert MethodConfig(recipe="crma+ replay").name == "crma + replay"
    for alias, name in ALIASES.items():
        assert recipe_names(alias) == [name]
    with pytest.raises(UnknownNameError, match=r"no recipe named 'relpay'(?s:.*)Try: +replay"):
        recipe_names("crma + relpay")


def test_each_penalty_has_a_weight_of_its_own():
    assert penalty_weights(MethodConfig(recipe="lora + ewc", penalty_weight=3.0)) == {"ewc_lora": 3.0}
    assert penalty_weights(MethodConfig(recipe="olora + ewc")) == {"ewc_lora": 1000.0, "olora": 0.5}
    given = MethodConfig(recipe="olora + ewc", penalty_weight={"ewc": 7.0})
    assert penalty_weights(given) == {"ewc_lora": 7.0, "olora": 0.5}
    assert penalty_weights(MethodConfig(recipe="lora")) == {}
    with pytest.raises(
        ConfigError, match=r"one penalty_weight for 2 penalties(?s:.*)\{ewc_lora: 1000, olora: 0.5\}"
    ):
        find_recipe(MethodConfig(recipe="olora + ewc", penalty_weight=3.0))
    with pytest.raises(ConfigError, match="'olora' has no penalty 'ewc_lora'"):
        find_recipe(MethodConfig(recipe="olora", penalty_weight={"ewc": 3.0}))


def test_a_combination_has_the_settings_of_its_rows_and_no_others():
    method = MethodConfig(
        recipe="crma + replay", replay_ratio=0.3, constraint_strength=0.9, learning_rate=1e-3
    )
    both = effective_settings(find_recipe(method))
    assert both == effective_settings(answers("crma")) | effective_settings(answers("replay"))
    with pytest.raises(ConfigError, match=r"'stm_threshold' has no effect on the recipe 'crma \+ replay'"):
        find_recipe(MethodConfig(recipe="crma + replay", stm_threshold=3.0))


def test_every_setting_of_a_method_says_what_it_acts_on_and_acts_on_some_row():
    assert set(ACTS_ON) == set(MethodConfig.model_fields) - {"recipe", "name"}
    for key in ACTS_ON:
        assert users_of(key), key
    with pytest.raises(ConfigError, match=r"'ogd_directions' has no effect(?s:.*)only with full \+ ogd"):
        find_recipe(MethodConfig(recipe="ogd", ogd_directions=3))


def test_crma_has_a_penalty_of_its_own_under_its_own_type_only():
    assert penalty_weights(MethodConfig(recipe="crma")) == {"crma": PENALTY_WEIGHT}
    assert penalty_weights(MethodConfig(recipe="crma + olora", penalty_weight={"crma": 0.0})) == {
        "crma": 0.0,
        "olora": 0.5,
    }
    with pytest.raises(ConfigError, match="no effect on the recipe 'crma' with constraint_type 'gem'"):
        find_recipe(MethodConfig(recipe="crma", constraint_type="gem", penalty_weight=1.0))


def test_no_constraint_is_a_type_too_and_leaves_nothing_to_set_of_it():
    assert find_recipe(MethodConfig(recipe="crma", constraint_type="none")).constraint == "none"
    with pytest.raises(ConfigError, match=r"_strength' has no effect(?s:.*)constraint_type 'none'"):
        find_recipe(MethodConfig(recipe="crma", constraint_type="none", constraint_strength=0.9))
    with pytest.raises(ConfigError, match="'constraint_type' has no effect on the recipe 'lora'"):
        find_recipe(MethodConfig(recipe="lora", constraint_type="none"))


def test_the_rows_are_read_without_torch():
    code = "import sys, constrained_adapters.recipes; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
