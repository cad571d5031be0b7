"""From figures to levels, reasons and advice; the advice is a crma.yaml that reads."""

from __future__ import annotations

import pytest

from constrained_adapters.config.yaml_file import read_config
from constrained_adapters.diagnosis.advice import advice_yaml, advise
from constrained_adapters.diagnosis.risk import Signals, assess, highest
from constrained_adapters.diagnosis.settings import DiagnosisSettings
from constrained_adapters.recipes import find_recipe

SETTINGS = DiagnosisSettings()


def findings(rise: float | None, *, kl=0.5, jaccard=0.5, cosine=0.5, contradictions=0, denied=0):
    after = None if rise is None else 2.0 * (1.0 + rise)
    signals = Signals(kl, jaccard, 3.0, 4.0, cosine, None if rise is None else 2.0, after)
    return assess(
        signals,
        num_new=100,
        num_contradictions=contradictions,
        num_denied=denied,
        num_asked=32,
        settings=SETTINGS,
    )


@pytest.mark.parametrize(("rise", "level"), [(-0.1, "low"), (0.04, "low"), (0.06, "medium"), (0.3, "high")])
def test_the_trial_decides_whatever_the_texts_look_like(rise, level):
    found = findings(rise, kl=3.0, jaccard=0.01, cosine=-0.5)
    assert highest(found) == level
    assert {each.signal for each in found if each.decides} == {"trial"}


@pytest.mark.parametrize(
    ("options", "level"),
    [({}, "low"), ({"jaccard": 0.2}, "medium"), ({"kl": 2.1}, "high"), ({"cosine": -0.1}, "high")],
)
def test_without_a_trial_the_distances_decide(options, level):
    assert highest(findings(None, **options)) == level


def test_texts_alone_decide_nothing_unless_they_contradict():
    def texts(contradictions):
        return assess(
            Signals(3.0, 0.01),
            num_new=100,
            num_contradictions=contradictions,
            num_denied=0,
            num_asked=0,
            settings=SETTINGS,
        )

    assert highest(texts(0)) is None and highest(texts(1)) == "medium"
    assert [each.signal for each in texts(0)] == ["token_kl", "vocabulary"]


def test_facts_against_facts_raise_the_level():
    assert highest(findings(0.0, contradictions=1)) == "medium"
    assert highest(findings(0.0, contradictions=5)) == "high"
    assert highest(findings(0.0, denied=1)) == "medium"


def advice(level, **options):
    usual = {"num_train": 500, "num_old": 1, "old_data_at_hand": True, "on_gpu": True, "small_data": 100}
    return advise(level, **{**usual, **options})


def test_each_level_has_its_recipe_and_reasons():
    assert advice("low").recipe == "lora" and advice("low").training["weight_decay"] > 0
    assert advice("medium").recipe == "crma"
    assert advice("high").recipe == "replay + ewc_lora"
    assert advice("high", old_data_at_hand=False).recipe == "crma"
    assert "retrieval" in advice("low", num_train=40).reasons[0]
    assert "superseded" in advice("medium", num_contradictions=2).reasons[0]
    assert any("no GPU" in reason for reason in advice("low", on_gpu=False).reasons)


def test_a_run_that_protects_goes_on_and_one_that_does_not_is_left_where_it_would_forget():
    joined = advice("high", going_on="crma", protects=True)
    assert joined.recipe == "crma" and joined.guard is None
    assert advice("low", going_on="lora").recipe == "lora"
    assert advice("high", going_on="lora").recipe == "replay + ewc_lora"


@pytest.mark.parametrize("level", ["low", "medium", "high"])
def test_the_advised_settings_read_and_name_a_method_that_there_is(level, tmp_path):
    domains = [{"name": "Право", "data": "law.jsonl"}, {"name": "no", "data": "packaged:medicine"}]
    text = advice_yaml(advice(level), domains, base={"model": "embedded"}, title="a: b")
    (tmp_path / "crma.yaml").write_text(text, encoding="utf-8")
    config = read_config(tmp_path / "crma.yaml")
    assert [domain.name for domain in config.domains] == ["Право", "no"]
    assert find_recipe(config.methods[0])
    assert (config.guard is None) == (level == "low")
