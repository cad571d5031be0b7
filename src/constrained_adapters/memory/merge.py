"""Many domains' memories in one of constant size.

Each domain's Fisher of a matrix is ``G_k ⊗ A_k``. The merged one stands for their sum: it keeps

* ``energy`` and ``sensitivity``: the domains' factors, each divided by its trace so that every domain counts
  alike, added up and given the mean trace;
* ``output``: ``Σ_k (Tr A_k / mean Tr A) G_k``,

so its trace is that of the sum, Σ_k Tr G_k · Tr A_k. The sums run over low-rank rows through Frequent
Directions (Ghashami et al. 2016, arXiv 1501.01711) while the diagonals add up exactly: nothing of size d × d
is made, and memories can be merged one after another. What is lost: which domain's outputs went with which
domain's inputs (as in online K-FAC), the directions beyond the kept rank, which only the diagonal knows, and
the gradient sketches, which would grow.

Axis letters: d width, k kept directions, T domains.
"""

from __future__ import annotations

from collections.abc import Sequence

from constrained_adapters.errors import ModelError
from constrained_adapters.memory.factors import Factor, common_basis
from constrained_adapters.memory.frequent_directions import FrequentDirections
from constrained_adapters.memory.kfac import INPUT_KINDS, INPUT_RANK, OUTPUT_RANK, KFACMemory
from constrained_adapters.memory.statistics import mean_at_trace_one


def merge_memories(
    memories: Sequence[KFACMemory],
    *,
    domain: str = "merged",
    input_rank: int = INPUT_RANK,
    output_rank: int = OUTPUT_RANK,
) -> KFACMemory:
    """One memory for many domains, usable wherever a single one is.

    Args:
        memories: At least one, of the same base and the same layers; merged ones count as the number of
            domains that are in them.
        domain: The name of the result.
        input_rank: Most directions kept of an input.
        output_rank: Directions kept of each output.

    Returns:
        A memory whose predicted increase is the sum over the domains, per loss token.

    Raises:
        ModelError: The memories belong to different bases or different layers.

    Cost: O(T k d) numbers are read once; the result does not grow with T.
    """
    first = memories[0]
    for other in memories[1:]:
        if other.base_fingerprint != first.base_fingerprint:
            raise ModelError(
                "memories of different bases cannot be merged",
                got=f"{other.base_fingerprint} of domain {other.domain!r}",
                expected=f"{first.base_fingerprint}, as domain {first.domain!r}",
            )
        if other.groups != first.groups:
            raise ModelError(
                "memories of different layers cannot be merged",
                got=f"{len(other.groups)} layers of domain {other.domain!r}",
                expected=f"the same {len(first.groups)} layers as domain {first.domain!r}",
                hint="adapt the same layers for every domain",
            )
    counts = [memory.num_domains for memory in memories]
    num_domains, num_examples = sum(counts), sum(memory.num_examples for memory in memories)
    inputs = {}
    for key in first.inputs:
        sums = {
            kind: _even_sum([m.inputs[key][kind] for m in memories], counts, input_rank)
            for kind in INPUT_KINDS
        }
        # Both kinds count alike: a basis that served one first would leave no direction to the other.
        both = mean_at_trace_one(list(sums.values()))
        inputs[key] = Factor.stored_together(sums, common_basis([both], [1.0], input_rank))
    outputs = {}
    for module, key in first.groups.items():
        traces = [memory.inputs[key]["energy"].trace for memory in memories]
        mean = sum(count * trace for count, trace in zip(counts, traces, strict=True)) / num_domains
        weighted = [
            (memory.outputs[module], trace / mean if mean else 1.0)
            for memory, trace in zip(memories, traces, strict=True)
        ]
        outputs[module] = Factor.stored(_sum(weighted, output_rank), output_rank)
    return KFACMemory(
        domain=domain,
        base_fingerprint=first.base_fingerprint,
        groups=dict(first.groups),
        inputs=inputs,
        outputs=outputs,
        num_examples=num_examples,
        loss_nats=sum(memory.loss_nats * memory.num_examples for memory in memories) / max(num_examples, 1),
        num_domains=num_domains,
    )


def _even_sum(factors: Sequence[Factor], counts: Sequence[int], rank: int) -> FrequentDirections:
    """Each factor at trace one times its number of domains, added and given the mean trace."""
    traces = [factor.trace for factor in factors]
    mean = sum(count * trace for count, trace in zip(counts, traces, strict=True)) / sum(counts)
    # A domain without curvature leaves its place to the others, so that the trace stays the mean.
    there = sum(count for count, trace in zip(counts, traces, strict=True) if trace > 0.0)
    weights = [
        mean * count / (there * trace) if trace > 0.0 else 0.0
        for count, trace in zip(counts, traces, strict=True)
    ]
    return _sum(list(zip(factors, weights, strict=True)), rank)


def _sum(weighted: Sequence[tuple[Factor, float]], rank: int) -> FrequentDirections:
    """``Σ w F`` as a sketch: its kept directions as rows, its diagonal exact."""
    first = weighted[0][0]
    sketch = FrequentDirections(first.width, 2 * rank, first.vectors.device)
    for factor, weight in weighted:
        sketch.update((factor.vectors * (weight * factor.values).sqrt()).T)
        sketch.diagonal += weight * factor.rest
    return sketch
