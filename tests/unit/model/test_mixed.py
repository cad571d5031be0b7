"""Batches whose rows go through different adapters, against stock PEFT and against one row at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM

from constrained_adapters.adapters import row_pairs
from constrained_adapters.adapters.concatenate import concatenate
from constrained_adapters.adapters.lora import adapter_pairs, delta_weight
from constrained_adapters.errors import AdapterStateError, ConfigError, UnknownNameError

NAMES = ["law", "medicine", "数学"]
RANKS = [4, 2, 7]


@pytest.fixture
def model(make_model):
    """Three adapters of different ranks, frozen; one of them active, which must not matter."""
    made = make_model()
    for name, rank in zip(NAMES, RANKS, strict=True):
        made.create_adapter(name, adapter_dim=rank)
        for pair in adapter_pairs(made, name):
            torch.nn.init.normal_(pair.b, std=0.3)
        made.freeze_adapter(name)
    made.set_active_adapter("medicine")
    made.set_adapter_weights({"medicine": 0.1})
    return made.eval()


@pytest.fixture
def theirs(model, base_folder, tmp_path):
    """The same adapters in a stock PeftModel, from the folders that ours writes."""
    stock = None
    for name in NAMES:
        model.save_adapter(tmp_path / name, name)
        if stock is None:
            base = AutoModelForCausalLM.from_pretrained(base_folder)
            stock = PeftModel.from_pretrained(base, tmp_path / name, adapter_name=name)
        else:
            stock.load_adapter(tmp_path / name, name)
    return stock.eval()


def prompts(count: int) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, padded on the left."""
    ids = torch.randint(3, 259, (count, 9), generator=torch.Generator().manual_seed(count))
    mask = torch.ones_like(ids)
    for row in range(count):
        mask[row, : row % 4] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}


def valid(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return logits[batch["attention_mask"].bool()]


def row_of(batch, index: int) -> dict[str, torch.Tensor]:
    return {key: value[index : index + 1] for key, value in batch.items()}


def alone(model, weights: dict[str, float]) -> None:
    model.set_active_adapters(list(weights))
    model.set_adapter_weights(weights)


@torch.no_grad()
def test_single_names_are_pefts_own_mixed_batch(model, theirs):
    batch = prompts(5)
    names = ["law", "数学", "__base__", "medicine", "law"]
    found = valid(model(**batch, adapter_names=names).logits, batch)
    wanted = valid(theirs(**batch, adapter_names=names).logits, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(**batch, adapter_names=names, **options),
        theirs.generate(**batch, adapter_names=names, **options),
    )


@torch.no_grad()
def test_weighted_rows_are_pefts_concatenated_adapters(model, theirs):
    mixes = [{"law": 0.7, "medicine": 0.3}, {"数学": -1.2, "law": 0.5}, {"medicine": 2.0}]
    batch = prompts(3)
    found = model(**batch, adapter_names=mixes).logits
    for index, mix in enumerate(mixes):
        # PEFT takes the scaling of each adapter into the weights, and the root of a negative one fails.
        if min(mix.values()) > 0:
            theirs.add_weighted_adapter(list(mix), list(mix.values()), f"mix{index}", combination_type="cat")
            theirs.set_adapter(f"mix{index}")
            wanted = theirs(**row_of(batch, index)).logits
        else:
            alone(model, mix)
            wanted = model(**row_of(batch, index)).logits
        keep = batch["attention_mask"][index].bool()
        torch.testing.assert_close(found[index][keep], wanted[0][keep], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_active_set_is_as_before_and_base_rows_are_the_base(model, logits):
    before = logits(model)
    batch = prompts(2)
    found = model(**batch, adapter_names=["__base__", {}]).logits
    with model.base_only():
        assert torch.equal(found, model(**batch).logits)
        assert torch.equal(found, model(**batch, adapter_names=["law", "law"]).logits)
    mixed = model(**batch, adapter_names=["__base__", "law"]).logits
    torch.testing.assert_close(mixed[0], found[0], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(mixed[1], found[1], atol=1e-2)
    assert torch.equal(logits(model), before)
    assert model.active_names == ["medicine"]


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"num_return_sequences": 3, "do_sample": True},
    ],
    ids=["beams", "beams and sequences", "sequences"],
)
def test_rows_that_generate_multiplies_keep_their_adapters(model, options):
    """Sampled with top_k=1, so that each sequence is the greedy one."""
    batch = prompts(3)
    rows = ["数学", {"law": 0.4, "medicine": 0.9}, "__base__"]
    options = {"max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None, "do_sample": False, **options}
    options |= {"top_k": 1} if options["do_sample"] else {}
    found = model.generate(**batch, adapter_names=rows, **options)
    each = len(found) // 3
    for index, row in enumerate([{"数学": 1.0}, rows[1], {}]):
        alone(model, row)
        wanted = model.generate(**row_of(batch, index), **options)
        assert torch.equal(found[index * each : (index + 1) * each], wanted)


@torch.no_grad()
def test_rows_join_and_leave_between_decoding_steps(model):
    """A batch decoded by hand with one cache: what a row goes through may be changed at any step."""
    ids = prompts(3)["input_ids"][:, 4:]
    steps = [
        ["law", "medicine", "__base__"],
        ["law", "数学", "medicine"],
        [{"law": 0.5}, "__base__", "medicine"],
    ]
    cache, found = None, []
    with model.mixed_batch(steps[0]) as mixed:
        for number, rows in enumerate(steps):
            mixed.set_rows(rows)
            fed = ids if number == 0 else ids[:, number : number + 1]
            output = model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits[:, -1])
    for index in range(3):
        cache = None
        for number, rows in enumerate(steps):
            row = {rows[index]: 1.0} if isinstance(rows[index], str) else rows[index]
            alone(model, {name: weight for name, weight in row.items() if name != "__base__"})
            fed = ids[index : index + 1] if number == 0 else ids[index : index + 1, number : number + 1]
            output = model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            torch.testing.assert_close(found[number][index], output.logits[0, -1], rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(NAMES), st.floats(-3, 3, allow_nan=False, width=32)),
        min_size=1,
        max_size=6,
    ),
    expanded=st.integers(1, 3),
    flat=st.booleans(),
)
@torch.no_grad()
def test_a_layer_adds_the_weighted_deltas_of_each_row(model, rows, expanded, flat):
    module = "model.layers.1.self_attn.v_proj"
    layer = model.get_base_model().get_submodule(module)
    deltas = {
        name: next(
            delta_weight(pair) for pair in adapter_pairs(model, name) if pair.module == module
        ).double()
        for name in NAMES
    }
    x = torch.randn(len(rows) * expanded, 3, layer.in_features)
    with model.mixed_batch(rows):
        found = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if flat else layer(x)
    for index in range(len(x)):
        total = layer.base_layer.weight.double()
        for name, weight in rows[index // expanded].items():
            total = total + weight * deltas[name]
        torch.testing.assert_close(found[index].double(), x[index].double() @ total.T, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_only_changed_entries_are_written(model, monkeypatch):
    """Per layer one copy of an entry, and none of one that stays as it is or goes through the base."""
    written = []

    def counted(layer, scalings):
        written.append(set(scalings))
        return concatenate(layer, scalings)

    monkeypatch.setattr(row_pairs, "concatenate", counted)
    batch = prompts(3)
    layers = len(list(adapter_pairs(model, "law")))
    with model.mixed_batch(["law"]) as mixed:
        for rows, num_copies in [
            (["law", "数学", "__base__"], 2),
            (["law", "medicine", "__base__"], 1),
            (["law", "__base__", {"medicine": 0.5}], 1),
            (["law", "medicine", {"medicine": 0.5}], 1),
        ]:
            mixed.set_rows(rows)
            written.clear()
            model(**batch)
            assert len(written) == num_copies * layers
            model(**batch)
            assert len(written) == num_copies * layers
    written.clear()
    model(**batch, adapter_names=["law", "medicine", {"medicine": 0.5}])
    assert not written


@torch.no_grad()
def test_few_adapters_are_shared_and_many_are_not(model):
    """The copies of a pair per row are at most twice the adapters."""
    layer = next(iter(model._acting.layers.values()))
    for rows, num_pairs in [(["law"] * 2, 2), (["law"] * 3, 1), (["law", "数学"] * 2, 2), (NAMES, 3)]:
        model(**prompts(len(rows)), adapter_names=rows)
        assert layer.pairs._num_pairs == num_pairs
        assert (layer.pairs._gates is not None) == (num_pairs < len(rows))


@torch.no_grad()
def test_pairs_follow_their_adapters(model, tmp_path):
    batch = prompts(2)

    def run(*rows):
        return model(**batch, adapter_names=list(rows)).logits

    one = run("medicine", "medicine")
    model.save_adapter(tmp_path / "medicine", "medicine")
    for pair in adapter_pairs(model, "medicine"):
        pair.b.mul_(2.0)
    assert not torch.allclose(run("medicine", "medicine"), one, atol=1e-3)
    model.delete_adapter("medicine")
    assert all(layer.pairs._a is None for layer in model._acting.layers.values())
    model.load_adapter(tmp_path / "medicine")
    assert torch.allclose(run("medicine", "medicine"), one, atol=1e-5)


@torch.no_grad()
def test_an_adapter_that_was_trained_on_acts_as_it_is_now(model, rows, train):
    model.create_adapter("finance")
    batch = prompts(2)
    before = model(**batch, adapter_names=["finance", "law"]).logits
    model.set_active_adapters(["law", "finance"])
    with torch.enable_grad():
        train(model, rows(0), max_steps=2)
    found = model(**batch, adapter_names=["finance", "law"]).logits
    alone(model, {"finance": 1.0})
    torch.testing.assert_close(found[0], model(**row_of(batch, 0)).logits[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], before[0], atol=1e-3)
    assert torch.equal(found[1], before[1])


@torch.no_grad()
def test_a_base_in_sixteen_bits_and_a_cast_model(model):
    batch = prompts(2)
    rows = ["law", {"medicine": 0.5, "数学": 0.5}]
    wanted = model(**batch, adapter_names=rows).logits
    model.to(torch.bfloat16)
    found = model(**batch, adapter_names=rows).logits
    assert found.dtype == torch.bfloat16
    assert (
        float((valid(found, batch).float() - valid(wanted, batch)).norm() / valid(wanted, batch).norm())
        < 0.05
    )


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["law", "laww"], UnknownNameError, r"no adapter named 'laww'(?s:.*)__base__, law(?s:.*)Try: +law"),
        (["law", {"laww": 1.0}], UnknownNameError, "no adapter named 'laww'"),
        (["law"], ConfigError, r"not one entry per row\n.*1 entries for 2 rows\n.*Expected: 2 entries"),
        (["law"] * 3, ConfigError, "3 entries for 2 rows"),
        ([], ConfigError, "0 entries for 2 rows"),
        (["law", {"law": float("nan")}], ConfigError, r"'law' is not a finite number\n.*nan"),
        (["law", {"law": float("inf")}], ConfigError, "not a finite number"),
        (["law", {"law": "0.5"}], ConfigError, "not a finite number"),
        (["law", None], ConfigError, "cannot be read(?s:.*)None"),
    ],
)
def test_entries_that_cannot_be_are_told(model, names, error, message):
    for call in (model, model.generate):
        with pytest.raises(error, match=message):
            call(**prompts(2), adapter_names=names)
    assert model._acting.mixed is None


def test_a_batch_that_does_not_divide_is_told(model):
    with (
        model.mixed_batch(["law", "medicine"]),
        pytest.raises(ConfigError, match=r"does not divide(?s:.*)3 rows for 2 entries"),
    ):
        model(**prompts(3))
    with pytest.raises(ConfigError, match="one entry per row"), model.mixed_batch([]):
        pass


def test_training_a_mixed_batch_is_an_error(model):
    model.train()
    with pytest.raises(AdapterStateError, match=r"cannot be trained(?s:.*)model\.eval\(\)"):
        model(**prompts(1), adapter_names=["law"])
    with torch.no_grad():
        model(**prompts(1), adapter_names=["law"])


def test_a_model_without_adapters_knows_base_rows_only(make_model):
    model = make_model().eval()
    batch = prompts(2)
    with torch.no_grad():
        found = model(**batch, adapter_names=["__base__"] * 2).logits
        assert torch.equal(found, model(**batch).logits)
    with pytest.raises(UnknownNameError, match="'law'"):
        model(**batch, adapter_names=["law", "law"])
