"""One short pass over a domain's examples that feeds every kind of memory of it.

For each adapted matrix W (d_out × d_in) with input a_t at token t:

* ``energy``      Σ_t a_t a_tᵀ / tokens          (GPM: which inputs occur)
* ``sensitivity`` Σ_t ‖j_t‖ a_t a_tᵀ, at trace 1 (which inputs reach an answer)
* ``output``      Σ_t g_t g_tᵀ / loss tokens      (K-FAC's other factor)

g_t is the gradient at the module's output of the loss on labels drawn from the model itself (so the true
Fisher, not the squared gradient of the data's labels); ``output ⊗ energy`` is K-FAC's Fisher per loss token.
j_t is the gradient there of Σ ± h, random signs over all entries of the final states h (what the output
layer reads) at the loss tokens: over the signs, the mean of ‖j_t‖² is the squared norm of the Jacobian of
those states in the module's output at t (Hutchinson 1990's estimate). Unlike g_t it does not fade where the
model is sure of its answer.

None depends on the batch size. Padding does not count. Logits over the vocabulary are made only where labels
are drawn from them: the final states alone say what is sensitive. Modules that read the same input (q, k, v)
share ``energy`` and ``sensitivity``, the latter as the mean of theirs, each at trace 1. Terms between
different tokens are left out, as in K-FAC-expand (Eschenhagen et al. 2023, arXiv 2311.00636). Other
accumulators can listen to the same pass, such as
:class:`~constrained_adapters.memory.gradient_sketch.SketchAccumulator`, which keeps those terms.

Axis letters: b batch, s sequence, n tokens of a batch without padding, d width, v vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from constrained_adapters.memory.statistics import (
    DRAWN_EXAMPLES,
    SKETCH_ROWS,
    WIDE,
    KFACAccumulator,
    Statistics,
)
from constrained_adapters.models.modes import evaluating

__all__ = ["Accumulator", "Statistics", "gather_statistics"]

Source = Literal["states", "drawn", "own"]
"""What a gradient is of: final states along random signs, the loss on drawn labels, or on the data's own."""


class Accumulator(Protocol):
    """What listens to the pass."""

    @property
    def wants_drawn_labels(self) -> bool:
        """Whether the backward pass of the loss on drawn labels is wanted of the batch."""

    @property
    def wants_true_labels(self) -> bool:
        """Whether one more backward pass, of the loss on the data's own labels, is wanted of the batch."""

    def start_batch(self, lengths: list[int], loss_lengths: list[int]) -> None:
        """Tokens and loss tokens of each example of the batch that begins."""

    def add_inputs(self, name: str, key: str, rows: Tensor) -> None:
        """Inputs (n, d_in) of module ``name``, example after example; ``key`` names their first reader."""

    def add_gradients(self, name: str, key: str, rows: Tensor, gradients: Tensor, source: Source) -> None:
        """Gradients (n, d_out) at the outputs of module ``name``."""

    def end_batch(self) -> None:
        """All modules have been heard."""


@dataclass
class _Pass:
    """State of the batch under way: ``tokens`` (n,) are the places in b · s where there is no padding."""

    accumulators: Sequence[Accumulator]
    tokens: Tensor | None = None
    source: Source = "states"
    without_logits: bool = False
    """The output layer is shown one position only; what it would have read is in ``states``."""
    states: list[Tensor] = field(default_factory=list)
    """What the output layer was given in the batch under way, shape (b, s, d), if the model has one."""


def gather_statistics(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    generator: torch.Generator,
    domain: str = "",
    accumulators: Sequence[Accumulator] = (),
    wide: int = WIDE,
    sketch_rows: int = SKETCH_ROWS,
    drawn_examples: int = DRAWN_EXAMPLES,
    energy_examples: int | None = None,
) -> Statistics:
    """Run the pass.

    Args:
        model: A causal LM; called with ``input_ids`` and ``attention_mask``, gives ``logits``.
            Its parameters, their gradients and its modules' training modes are left as they were.
        modules: The adapted linear layers by name.
        batches: Each with ``input_ids``, ``attention_mask`` and ``labels`` (b, s); tokens whose
            label is −100 carry no loss, and rows of only such tokens are left out.
        generator: CPU source of the drawn labels and, by its seed, of the random signs; the global random
            state is not touched.
        domain: Named in errors.
        accumulators: Others that listen to the same pass.
        wide: Widths above it are sketched: no d × d matrix is made for them.
        sketch_rows: Size of those sketches.
        drawn_examples: How many of the first examples make ``output``, and the loss beside it.
        energy_examples: How many of the first make ``energy``; default: all.

    Returns:
        Their means.

    Raises:
        TrainingError: No loss token in any batch, or a statistic is not finite.

    Cost: one forward and one backward pass per batch, no weight gradients; logits and one more backward pass
    for the batches that hold the first ``drawn_examples``, or of which an accumulator wants drawn labels, and
    one where it wants the data's own.
    """
    kfac = KFACAccumulator(wide, sketch_rows, drawn_examples, energy_examples)
    state = _Pass([kfac, *accumulators])
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    takes_columns = "logits_to_keep" in inspect.signature(model.forward).parameters
    if any(module is head for module in modules.values()):
        head = None  # the final states lie before it: it is probed at the logits
    if head is None:
        takes_columns = False
    signs = torch.Generator().manual_seed(generator.initial_seed() + 1)
    with _recording(model, modules, state, head):
        for batch in batches:
            losses = _one_batch(model, batch, state, (generator, signs), head is not None, takes_columns)
            kfac.statistics.loss_nats += float(losses[: kfac.num_drawn_losses].sum())
    return kfac.statistics.normalised(domain)


def _one_batch(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    state: _Pass,
    generators: tuple[torch.Generator, torch.Generator],
    has_head: bool,
    takes_columns: bool,
) -> Tensor:
    """Feed one batch; returns the loss at each of its own labels, shape (n,), empty where none was needed."""
    # Row by row, so that it does not matter which rows share a batch.
    counts = (batch["labels"][:, 1:] != -100).any(dim=1)
    if not bool(counts.any()):
        return torch.zeros(0)
    batch = {key: batch[key][counts] for key in ("input_ids", "attention_mask", "labels")}
    labels, mask = batch["labels"][:, 1:], batch["attention_mask"].bool()
    place = labels != -100
    state.tokens = mask.reshape(-1).nonzero().squeeze(1)
    state.states.clear()
    for each in state.accumulators:
        each.start_batch(mask.sum(1).tolist(), place.sum(1).tolist())
    drawn = any(each.wants_drawn_labels for each in state.accumulators)
    own = any(each.wants_true_labels for each in state.accumulators)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    # The last position of each row predicts nothing.
    kept = torch.nn.functional.pad(place, (0, 1))
    state.without_logits = has_head and not (drawn or own)
    if takes_columns and not state.without_logits:
        # Logits over the vocabulary are a good part of a small model's work: only where a label is.
        columns = place.any(dim=0).nonzero().squeeze(1)
        kept, logits = place[:, columns], model(**inputs, logits_to_keep=columns).logits
    else:
        logits = model(**inputs).logits
    # Without an output layer after all modules, the logits are the final states.
    states = (state.states[0] if state.states else logits)[kept].float()
    state.source = "states"
    (states * _signs(states, generators[1])).sum().backward(retain_graph=drawn or own)
    losses = torch.zeros(0)
    if drawn or own:
        log_probs = torch.log_softmax(logits[kept].float(), dim=-1)
        del logits
        own_terms = -log_probs.gather(1, labels[place][:, None])
        losses = own_terms.detach()
        if drawn:
            sampled = _draw(log_probs.detach(), generators[0])
            state.source = "drawn"
            (-log_probs.gather(1, sampled[:, None]).sum()).backward(retain_graph=own)
        if own:
            state.source = "own"
            own_terms.sum().backward()
    for each in state.accumulators:
        each.end_batch()
    return losses


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs of the shape of ``like``: the same for the same tokens, however they are batched."""
    bits = torch.randint(0, 2, like.shape, generator=generator)
    return (2 * bits - 1).to(like)


def _draw(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """One label per row by inverting the cumulative distribution at a uniform number from the CPU."""
    uniform = torch.rand(log_probs.shape[0], 1, generator=generator).to(log_probs.device)
    cumulative = log_probs.exp().cumsum(-1)
    return (
        torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
        .squeeze(1)
        .clamp_max(log_probs.shape[1] - 1)
    )


@contextmanager
def _recording(
    model: nn.Module, modules: Mapping[str, nn.Module], state: _Pass, head: nn.Module | None
) -> Iterator[None]:
    """Hooks that pass on each batch's terms; parameters are frozen meanwhile, so no weight gradient is made.

    The model is put in evaluation mode, which also switches gradient checkpointing off: nothing is
    computed, and so counted, twice.
    """
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    handles: list[RemovableHandle] = []
    last: list[tuple[Tensor, str, Tensor]] = []

    def forward_hook(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:  # a pass of somebody else's, such as generating the next batch
                return
            source, tokens = args[0], state.tokens
            if not last or last[0][0] is not source:
                last[:] = [(source, name, source.detach().reshape(-1, source.shape[-1])[tokens].float())]
            _, key, rows = last[0]
            for each in state.accumulators:
                each.add_inputs(name, key, rows)

            def backward(grad: Tensor) -> None:
                g = grad.detach().reshape(-1, grad.shape[-1])[tokens].float()
                for each in state.accumulators:
                    each.add_gradients(name, key, rows, g, state.source)

            output.register_hook(backward)

        return hook

    def note_states(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        state.states[:] = [args[0]]
        return (args[0][:, :1], *args[1:]) if state.without_logits else None

    def open_graph(module: nn.Module, args: Any, output: Tensor) -> None:
        output.requires_grad_(True)

    try:
        for p in model.parameters():
            p.requires_grad_(False)
        handles.append(model.get_input_embeddings().register_forward_hook(open_graph))  # type: ignore[operator]
        handles += [module.register_forward_hook(forward_hook(name)) for name, module in modules.items()]
        if head is not None:
            handles.append(head.register_forward_pre_hook(note_states))
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        # A kept state leads over its graph back to the hooks, and so to all statistics: a cycle that the
        # garbage collector cannot see.
        state.states.clear()
        last.clear()
        for name, p in model.named_parameters():
            p.requires_grad_(required[name])
