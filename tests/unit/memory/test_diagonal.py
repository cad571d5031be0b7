"""The diagonal Fisher against brute force in float64, and the one parabola of many."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.errors import ConfigError, TrainingError, WorkspaceError
from constrained_adapters.memory.diagonal import DiagonalMemory, LayerFisher, parameter_fisher
from constrained_adapters.memory.gather import gather_statistics
from constrained_adapters.memory.reservoir import pad_rows


def rows(count: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for index in range(count):
        ids = torch.randint(3, 264, (6 + 2 * index,), generator=generator)
        labels = ids.clone()
        labels[: 3 + index % 2] = -100
        made.append((ids, labels))
    return made


def brute_force(model, weights, drawn_by_row) -> dict[str, torch.Tensor]:
    """Σ_n (∇ Σ_t log p(y_nt))² / tokens, one label list per row."""
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    count = 0
    for (ids, labels), drawn in zip(rows(), drawn_by_row, strict=True):
        model.zero_grad()
        log_probs = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], dim=-1)
        positions = (labels[1:] != -100).nonzero().squeeze(1)
        sum(log_probs[t, y] for t, y in zip(positions.tolist(), drawn, strict=True)).backward()
        for name, p in weights.items():
            total[name] += p.grad**2
        count += len(positions)
    model.zero_grad()
    return {name: value / count for name, value in total.items()}


def test_the_fisher_of_parameters_is_the_mean_square_of_per_example_gradients(tiny_llama):
    model = tiny_llama.double()
    weights = dict(model.named_parameters())
    drawn, generator = [], torch.Generator().manual_seed(7)
    with torch.no_grad():
        for ids, labels in rows():
            probs = torch.softmax(model(input_ids=ids[None]).logits[0, :-1][labels[1:] != -100], dim=-1)
            drawn.append(torch.multinomial(probs, 1, generator=generator).squeeze(1).tolist())
    model.train()
    state = torch.random.get_rng_state()
    found = parameter_fisher(model, weights, rows(), generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.random.get_rng_state(), state) and model.training
    assert all(p.grad is None for p in weights.values())
    model.eval()
    for name, wanted in brute_force(model, weights, drawn).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-15, msg=name)


class Drawn:
    """Listens for the labels: at the head the output gradient of −log p is softmax − one-hot."""

    wants_drawn_labels = True
    wants_true_labels = False

    def __init__(self) -> None:
        self.labels: list[list[int]] = []

    def start_batch(self, lengths, loss_lengths):
        self.lengths = lengths

    def add_inputs(self, name, key, rows):
        pass

    def add_gradients(self, name, key, rows, gradients, source):
        if name == "lm_head" and source == "drawn":
            for g in gradients.split(self.lengths):
                self.labels.append(g[g.abs().sum(1) > 0].argmin(1).tolist())

    def end_batch(self):
        pass


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_fisher_of_layers_is_brute_force_and_does_not_depend_on_the_batch(tiny_llama, batch_size):
    model = tiny_llama
    modules = {"lm_head": model.lm_head, **{n: model.get_submodule(n) for n in LAYERS}}
    fisher, drawn = LayerFisher(), Drawn()
    batches = [pad_rows(rows()[i : i + batch_size], "cpu") for i in range(0, 5, batch_size)]
    gather_statistics(
        model, modules, batches, generator=torch.Generator().manual_seed(1), accumulators=[fisher, drawn]
    )
    double = model.double()
    weights = {name: double.get_submodule(name).weight for name in LAYERS}
    wanted = brute_force(double, weights, drawn.labels)
    found = fisher.fisher()
    for name in LAYERS:
        torch.testing.assert_close(found[name].double(), wanted[name], rtol=1e-3, atol=1e-6, msg=name)


LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"]


def test_what_has_no_loss_or_is_not_finite_is_refused(tiny_llama):
    silent = [(ids, torch.full_like(ids, -100)) for ids, _ in rows()]
    weights = dict(tiny_llama.named_parameters())
    with pytest.raises(TrainingError, match="domain 'law' carries loss"):
        parameter_fisher(tiny_llama, weights, silent, generator=torch.Generator(), domain="law")
    with pytest.raises(TrainingError, match="no token of these examples carries loss"):
        LayerFisher().fisher()
    fisher = LayerFisher()
    fisher.start_batch([1], [1])
    fisher.add_gradients("q", "q", torch.full((1, 2), torch.inf), torch.ones(1, 2), "drawn")
    with pytest.raises(TrainingError, match=r"(?s)not finite.*q"):
        fisher.fisher()


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=5))
def test_the_parabolas_of_all_domains_are_one(seeds):
    memory, domains = DiagonalMemory(), []
    for place, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        fisher = torch.rand(4, 3, generator=generator, dtype=torch.float64)
        fisher[fisher < 0.3] = 0.0  # weights that did not matter
        weights = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        memory = memory.with_domain(f"{place}", {"w": fisher}, {"w": weights})
        domains.append((fisher, weights))
    theta = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = sum((f * (theta - w) ** 2).sum() for f, w in domains)
    one = (memory.importance["w"] * (theta - memory.anchor["w"]) ** 2).sum() + memory.constant
    torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=5), st.floats(0.0, 1.0))
def test_online_the_old_importance_decays_around_the_last_weights(seeds, decay):
    memory, domains = DiagonalMemory(), []
    for place, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        fisher = torch.rand(4, 3, generator=generator, dtype=torch.float64)
        weights = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        memory = memory.with_domain(f"{place}", {"w": fisher}, {"w": weights}, decay=decay)
        domains.append((fisher, weights))
    wanted = sum(decay ** (len(seeds) - 1 - k) * fisher for k, (fisher, _) in enumerate(domains))
    torch.testing.assert_close(memory.importance["w"], wanted, rtol=1e-9, atol=1e-12)
    assert torch.equal(memory.anchor["w"], domains[-1][1]) and memory.constant == 0.0
    assert memory.domains == tuple(f"{k}" for k in range(len(seeds)))


def test_online_with_one_domain_or_without_decay_the_importance_is_that_of_ewc():
    first = ({"w": torch.rand(2, 3)}, {"w": torch.rand(2, 3)})
    second = ({"w": torch.rand(2, 3)}, {"w": torch.rand(2, 3)})
    plain, online = (DiagonalMemory().with_domain("a", *first, decay=decay) for decay in (None, 0.3))
    assert torch.equal(plain.importance["w"], online.importance["w"])
    assert torch.equal(plain.anchor["w"], online.anchor["w"]) and plain.constant == online.constant == 0.0
    both = [
        memory.with_domain("b", *second, decay=d).importance["w"]
        for memory, d in ((plain, None), (online, 1.0))
    ]
    assert torch.equal(*both)
    without_anchor = (
        DiagonalMemory().with_domain("a", first[0], decay=0.5).with_domain("b", second[0], decay=0.5)
    )
    torch.testing.assert_close(without_anchor.importance["w"], 0.5 * first[0]["w"] + second[0]["w"])
    assert not without_anchor.anchor


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match="decay of online EWC is out of range"):
        DiagonalMemory().with_domain("a", {"w": torch.rand(2)}, {"w": torch.rand(2)}, decay=decay)


def test_it_comes_back_from_its_file(tmp_path):
    memory = DiagonalMemory().with_domain("数学", {"w": torch.rand(2, 3)}, {"w": torch.rand(2, 3)})
    path = tmp_path / "m.safetensors"
    memory.write(path)
    again = DiagonalMemory.load(path)
    assert (again.domains, again.constant) == (("数学",), 0.0)
    assert torch.equal(again.importance["w"], memory.importance["w"])
    assert torch.equal(again.anchor["w"], memory.anchor["w"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WorkspaceError, match="importance of the weights cannot be read"):
        DiagonalMemory.load(path)
