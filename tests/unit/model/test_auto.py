"""``"auto"`` strength and rank: the measured gradients against autograd, the choices on hand-made spectra."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_adapters.config.crma import STRICTEST_AUTO, CRMAConfig
from constrained_adapters.config.run import MethodConfig
from constrained_adapters.constraints import SUBSPACE_TYPES
from constrained_adapters.errors import AdapterStateError, ConfigError, TrainingError
from constrained_adapters.memory.factors import Factor
from constrained_adapters.memory.probe import ProbeGradients, closed_share, probe_gradients
from constrained_adapters.memory.protected import extend_basis
from constrained_adapters.model.auto import (
    AUTO_RANKS,
    AUTO_STRENGTHS,
    LEAST_OPEN_SHARE,
    choose,
    choose_rank,
    choose_strength,
    open_spectrum,
)

LAYERS = ("q_proj", "v_proj", "o_proj")


@pytest.fixture
def layers(tiny_llama):
    return {name: m for name, m in tiny_llama.named_modules() if name.rpartition(".")[2] in LAYERS}


@pytest.fixture
def token_rows():
    """Rows of different lengths, the first three tokens without loss."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for length in (12, 7, 9, 5, 10):
        ids = torch.randint(3, 259, (length,), generator=generator)
        labels = ids.clone()
        labels[:3] = -100
        found.append((ids, labels))
    return found


def dense_gradients(model, names, rows) -> dict[str, torch.Tensor]:
    """Row by row in float64, by autograd on the weights themselves."""
    exact = copy.deepcopy(model).double()
    for parameter in exact.parameters():
        parameter.requires_grad_(True)
    for ids, labels in rows:
        logits = exact(input_ids=ids[None].long()).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, labels[1:].long(), reduction="sum").backward()
    return {name: exact.get_submodule(name).weight.grad for name in names}


def test_the_gradients_are_those_of_autograd_and_the_model_is_left_as_it_was(tiny_llama, layers, token_rows):
    tiny_llama.train()
    required = {name: p.requires_grad for name, p in tiny_llama.named_parameters()}
    found = probe_gradients(tiny_llama, layers, token_rows, batch_size=2)
    assert tiny_llama.training and all(module.training for module in layers.values())
    assert required == {name: p.requires_grad for name, p in tiny_llama.named_parameters()}
    assert all(p.grad is None for p in tiny_llama.parameters())
    assert (found.num_examples, found.max_rank) == (5, 16)
    for name, wanted in dense_gradients(tiny_llama, layers, token_rows).items():
        torch.testing.assert_close(found.matrices[name].double(), wanted, rtol=1e-4, atol=1e-5)
    whole = probe_gradients(tiny_llama, layers, token_rows, batch_size=5)
    for name, matrix in whole.matrices.items():
        torch.testing.assert_close(matrix, found.matrices[name], rtol=1e-4, atol=1e-5)


def test_a_wide_gradient_is_projected_alike_in_every_batch_and_its_shares_are_kept(
    tiny_llama, layers, token_rows
):
    exact = probe_gradients(tiny_llama, layers, token_rows).matrices
    found = probe_gradients(tiny_llama, layers, token_rows, most_rows=24, batch_size=1).matrices
    again = probe_gradients(tiny_llama, layers, token_rows, most_rows=24, batch_size=5).matrices
    wide = [name for name, matrix in exact.items() if matrix.shape[0] > 24]
    assert wide and all(found[name].shape[0] == min(24, exact[name].shape[0]) for name in exact)
    for name in exact:
        torch.testing.assert_close(found[name], again[name], rtol=1e-4, atol=1e-5)
    # The mean over many layers, not one draw: each layer has its own 32 × 24 projection's error.
    bases = {name: torch.linalg.svd(matrix)[2][:3].T for name, matrix in exact.items()}
    assert closed_share(found, bases) == pytest.approx(closed_share(exact, bases), abs=0.05)
    spectra = [[open_spectrum(g[name], None) for name in g] for g in (exact, found)]
    held = [choose_rank(each, 128, share=1.0)[4] for each in spectra]
    assert held[1] == pytest.approx(held[0], abs=0.08)


def test_rows_without_loss_and_broken_weights_are_refused(tiny_llama, layers, token_rows):
    silent = [(ids, torch.full_like(ids, -100)) for ids, _ in token_rows]
    with pytest.raises(TrainingError, match="of domain 'law' carries loss"):
        probe_gradients(tiny_llama, layers, silent, domain="law")
    assert probe_gradients(tiny_llama, layers, [*silent, *token_rows]).num_examples == 5
    with torch.no_grad():
        layers["model.layers.1.self_attn.v_proj"].weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="gradient of domain 'law' is not finite"):
        probe_gradients(tiny_llama, layers, token_rows, domain="law")


def test_the_strictest_strength_that_leaves_enough_open_is_chosen():
    conflicts = dict(zip(AUTO_STRENGTHS, (0.9, 0.8, 0.7, 0.4, 0.3, 0.2), strict=True))
    assert choose_strength(conflicts.__getitem__, least_open=0.25) == {0.99: 0.9, 0.97: 0.8, 0.95: 0.7}
    assert list(choose_strength(conflicts.__getitem__, least_open=0.05))[-1] == 0.99
    assert list(choose_strength(conflicts.__getitem__, least_open=0.7))[-1] == 0.8
    assert list(choose_strength(conflicts.__getitem__, least_open=0.9)) == list(AUTO_STRENGTHS)
    assert AUTO_STRENGTHS[0] == STRICTEST_AUTO


def test_the_smallest_rank_that_gains_enough_is_chosen_weighing_layers_by_energy():
    flat = torch.ones(128, dtype=torch.float64)
    steep = torch.tensor([1000.0, 1.0, 1.0], dtype=torch.float64)
    assert list(choose_rank([flat], 128))[-1] == 128
    assert list(choose_rank([flat], 48)) == [4, 8, 16, 32]
    assert choose_rank([steep], 128) == {4: 1.0}
    assert list(choose_rank([steep, flat], 128, share=0.88))[-1] == 4  # 1006 of 1130
    assert choose_rank([steep, flat], 128)[16] == pytest.approx(1018 / 1130)
    assert list(choose_rank([flat], 3)) == [3]
    assert choose_rank([torch.zeros(5)], 128) == {4: 1.0}


def test_a_spectrum_is_that_of_the_gradient_outside_the_basis():
    torch.manual_seed(0)
    gradient, basis = torch.randn(12, 20), torch.linalg.qr(torch.randn(20, 6)).Q
    outside = gradient.double() @ (torch.eye(20) - basis @ basis.T).double()
    wanted = torch.linalg.svdvals(outside).square()
    torch.testing.assert_close(open_spectrum(gradient, basis), wanted, rtol=1e-4, atol=1e-4)
    largest = torch.linalg.svdvals(gradient.double())[:5].square()
    torch.testing.assert_close(open_spectrum(gradient.T, None, 5), largest, rtol=1e-4, atol=1e-4)
    whole = float(gradient.square().sum())
    assert closed_share({"q": gradient}, {"q": basis}) == pytest.approx(
        1 - float(wanted.sum()) / whole, rel=1e-4
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), decay=st.floats(0.2, 2.0))
def test_with_one_memory_the_conflict_rises_with_the_strength_and_the_choice_falls_with_what_must_stay_open(
    seed, decay
):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    factor = Factor(vectors, torch.arange(1.0, 13.0) ** -decay, 0.0)
    gradient = {"q": torch.randn(5, 12, generator=generator) @ (vectors * factor.values) @ vectors.T}

    def conflict_at(strength: float) -> float:
        return closed_share(gradient, {"q": extend_basis(None, factor, strength)})

    conflicts = [conflict_at(strength) for strength in AUTO_STRENGTHS]
    assert all(0.0 <= low <= high + 1e-5 <= 1.0 + 2e-5 for high, low in itertools.pairwise(conflicts))
    chosen = [
        list(choose_strength(conflict_at, least))[-1] for least in (0.0, 0.05, 0.1, 0.25, 0.5, 0.9, 1.0)
    ]
    assert chosen == sorted(chosen, reverse=True) and chosen[0] == AUTO_STRENGTHS[0]


def test_a_choice_says_its_figures_and_warns_where_nothing_leaves_enough_open():
    gradient = torch.diag(torch.tensor([5.0, 1.0, 1.0, 1.0, 1.0]))
    found = ProbeGradients({"q": gradient}, 5, 8)

    def all_at(count: int):
        return lambda strength: {"q": torch.eye(5)[:, : count if strength > 0.9 else 1]}

    def chosen(bases_at, strength="auto"):
        return choose(found, bases_at, strength=strength, rank="auto", default_strength=0.8)

    first = chosen(None)
    assert first.facts["chosen_strength"] == 0.8 and first.facts["gradient_conflict"] == 0.0
    assert "no memory closes anything yet" in first.reason
    assert (first.rank, first.facts["chosen_rank"]) == (4, 4.0)
    assert first.facts["rank_share"] == pytest.approx(28 / 29)
    later = chosen(all_at(4))
    assert later.facts["chosen_strength"] == 0.9
    assert later.facts["gradient_conflict"] == pytest.approx(25 / 29)
    assert later.reason.startswith(
        "strength 0.9: 86.2% of the domain's gradient is closed (96.6% at 0.95, 96.6%"
    )
    assert later.reason.endswith("rank 4: a first step gains 100% of what rank 128 would")
    assert set(chosen(all_at(4), 0.95).facts) == {"chosen_rank", "rank_share"}
    with pytest.warns(UserWarning, match=r"even strength 0\.7 closes 100\.0%"):
        chosen(lambda strength: {"q": torch.eye(5)})
    assert LEAST_OPEN_SHARE == 0.1 and AUTO_RANKS[-1] == 128


def probe(data) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in data]


def test_both_are_chosen_for_each_domain_act_and_are_kept_in_the_files(make_model, rows, train, tmp_path):
    model = make_model(constraint_strength="auto", adapter_dim="auto")
    model.enable_constrained_training(True)
    for number, name in enumerate(("law", "medicine")):
        model.create_adapter(name, probe_rows=probe(rows(number)))
        model.set_active_adapters(model.adapter_names)
        chosen = model.chosen(name)
        facts = model.constraint_facts()
        assert chosen.rank == model.peft_config[name].r == facts["chosen_rank"] <= 16
        assert facts["chosen_strength"] == (0.8 if number == 0 else chosen.facts["chosen_strength"])
        if number:
            assert facts["chosen_strength"] in AUTO_STRENGTHS and facts["closed_ratio"] > 0.0
            assert facts["gradient_conflict"] > 0.0
            space = model._protected_space(facts["chosen_strength"])
            bases = space.bases([model.gradient_memory("law")])
            again = probe_gradients(model._base, model._layers(), probe(rows(number)))
            # Measured before the new adapter was there; its small B changes next to nothing.
            assert closed_share(again.matrices, bases) == pytest.approx(facts["gradient_conflict"], abs=1e-3)
        train(model, rows(number))
        model.freeze_adapter(name)
        model.update_gradient_memory(name)
    model.save_adapter(tmp_path / "medicine", "medicine")
    assert json.loads((tmp_path / "medicine" / "crma.json").read_text())["chosen"]["reason"] == chosen.reason
    other = make_model(constraint_strength="auto", adapter_dim="auto")
    other.load_adapter(tmp_path / "medicine")
    assert other.chosen("medicine") == chosen


def test_the_choice_does_not_touch_the_random_state_or_the_sample_for_the_memory(make_model, rows):
    model = make_model(adapter_dim="auto", constraint_strength="auto")
    torch.manual_seed(3)
    chosen = model._choose("law", "auto", probe(rows(0)), 0)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    model.create_adapter("law", 0, probe_rows=probe(rows(0)))
    assert model.chosen("law") == chosen and model._states["law"].reservoir.num_seen == 0


def test_auto_without_rows_or_of_an_adapter_made_elsewhere_is_refused(make_model, rows, tmp_path):
    for setting in ("constraint_strength", "adapter_dim"):
        model = make_model(**{setting: "auto"})
        with pytest.raises(ConfigError) as caught:
            model.create_adapter("law")
        assert caught.value.got == f"{setting}='auto', and no probe_rows"
        assert caught.value.hint == f"create_adapter('law', probe_rows=rows), or a number for {setting}"
        assert model.adapter_names == []
    model.create_adapter("law", adapter_dim=3)
    assert model.peft_config["law"].r == 3
    model.save_adapter(tmp_path / "law", "law")
    strict = make_model(constraint_strength="auto")
    strict.load_adapter(tmp_path / "law", is_trainable=True)
    strict.enable_constrained_training(True)
    with pytest.raises(AdapterStateError, match="no strength was chosen for adapter 'law'"):
        strict.set_active_adapter("law")


def test_a_switched_off_constraint_leaves_only_the_rank_to_choose(make_model, rows):
    model = make_model(constraint_strength="auto", adapter_dim="auto", use_gradient_constraint=False)
    model.create_adapter("law", probe_rows=probe(rows(0)))
    assert set(model.chosen("law").facts) == {"chosen_rank", "rank_share"}
    plain = make_model(constraint_strength="auto", use_gradient_constraint=False)
    plain.create_adapter("law")
    assert plain.chosen("law").facts == {}


@pytest.mark.parametrize("kind", ["gem", "agem", "diagonal"])
def test_auto_strength_is_refused_where_no_direction_is_closed(kind):
    with pytest.raises(ConfigError, match="suits the types fisher and orthogonal only"):
        CRMAConfig(base_model_name="m", constraint_strength="auto", constraint_type=kind)
    with pytest.raises(ValueError, match="give a number"):
        MethodConfig(recipe="crma", constraint_strength="auto", constraint_type=kind)
    for name in SUBSPACE_TYPES:
        config = CRMAConfig(base_model_name="m", constraint_strength="auto", constraint_type=name)
        assert config.effective_strength == STRICTEST_AUTO
