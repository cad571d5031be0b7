"""Every constraint of the room, made on the same few LoRA pairs, with a check that a step obeyed it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor, nn

from constrained_adapters.adapters.lora import AdapterPair
from constrained_adapters.config.crma import CRMAConfig
from constrained_adapters.constraints.base import Constraint
from constrained_adapters.constraints.ewc import EWCConstraint
from constrained_adapters.constraints.ewc_lora import EWCLoRAConstraint
from constrained_adapters.constraints.frozen import FrozenWeightsConstraint
from constrained_adapters.constraints.in_turn import InTurn
from constrained_adapters.constraints.kept import KeptGradientConstraint
from constrained_adapters.constraints.ogd import OGDConstraint
from constrained_adapters.constraints.ogd_lora import OGDLoRAConstraint
from constrained_adapters.constraints.olora import OLoRAConstraint
from constrained_adapters.constraints.subspace import SubspaceConstraint
from constrained_adapters.constraints.weight_step import WeightStepConstraint
from constrained_adapters.memory.diagonal import DiagonalMemory
from constrained_adapters.memory.directions import StoredDirections
from constrained_adapters.model.binding import make_constraint

Pairs = list[AdapterPair]
TINY = 1e-30


@dataclass
class Step:
    """What a step had, for a check: gradients and values before it, gradients as the optimizer saw them."""

    own: list[Tensor]
    before: list[Tensor]
    seen: list[Tensor]


@dataclass
class Made:
    """A constraint, and what tells whether it was obeyed: 0 where it was, to rounding."""

    constraint: Constraint
    violation: Callable[[Step], float]
    given: list[Tensor] = field(default_factory=list)
    """What it was made of and must leave alone."""


@dataclass(frozen=True)
class Case:
    """One method.

    Args:
        module: Where it is documented, under ``constraints``.
        make: From pairs, the number of finished domains and a strength (or a penalty's weight).
        scales: Whether it has such a number; 0 then means plain training.
    """

    module: str
    make: Callable[[Pairs, int, float], Made]
    scales: bool = True

    @property
    def source(self) -> ModuleType:
        return importlib.import_module(f"constrained_adapters.constraints.{self.module}")


def parameters(pairs: Pairs) -> list[nn.Parameter]:
    return [p for pair in pairs for p in (pair.a, pair.b)]


def named(pairs: Pairs) -> dict[str, nn.Parameter]:
    return {f"{index}": p for index, p in enumerate(parameters(pairs))}


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def config(kind: str, **settings) -> CRMAConfig:
    return CRMAConfig(base_model_name="none", constraint_type=kind, **settings)


def share(part: Tensor, whole: Tensor) -> float:
    return float(part.norm() / whole.norm().clamp_min(TINY))


def parts_of(constraint: Constraint) -> list[Constraint]:
    return [constraint, *(constraint._parts if isinstance(constraint, InTurn) else ())]


def subspace(kind: str, make_memory, layers) -> Callable[[Pairs, int, float], Made]:
    def make(pairs: Pairs, finished: int, strength: float) -> Made:
        memories = [make_memory(index) for index in range(finished)]
        constraint = make_constraint(pairs, layers, memories, config(kind, constraint_strength=0.9))
        constraint.after_step()
        (closed,) = [part for part in parts_of(constraint) if isinstance(part, SubspaceConstraint)]

        def violation(step: Step) -> float:
            return max(share(a.detach() @ basis, a.detach()) for a, basis in closed._bound)

        return Made(constraint, violation, [basis for _, basis in closed._bound])

    return make


def against(old: list[Tensor], seen: list[Tensor]) -> float:
    """How far a gradient goes against an old one: −cosine where it does."""
    row, own = (torch.cat([t.float().flatten() for t in tensors]) for tensors in (old, seen))
    return max(0.0, -float(row @ own / (row.norm() * own.norm()).clamp_min(TINY)))


def predicted(kind: str, make_memory, layers) -> Callable[[Pairs, int, float], Made]:
    def make(pairs: Pairs, finished: int, strength: float) -> Made:
        memories = [make_memory(index) for index in range(finished)]
        constraint = make_constraint(pairs, layers, memories, config(kind, constraint_strength=strength))
        factors = [f.vectors for m in memories for f in m.outputs.values()]

        def violation(step: Step) -> float:
            now = [p.detach().clone() for p in parameters(pairs)]
            put(pairs, step.before)
            old = constraint.old_gradients()
            put(pairs, now)
            return max(against(each, step.seen) for each in old)

        return Made(constraint, violation, factors)

    return make


@torch.no_grad()
def put(pairs: Pairs, values: list[Tensor]) -> None:
    for p, value in zip(parameters(pairs), values, strict=True):
        p.copy_(value)


def kept(num_sources: Callable[[int], int], draws: bool = False) -> Callable[[Pairs, int, float], Made]:
    """Old losses are parabolas around points of their own; A-GEM's draws one of three at each step."""

    def make(pairs: Pairs, finished: int, strength: float) -> Made:
        ps = parameters(pairs)
        count = num_sources(finished)
        targets = [[random(70 + 9 * k + i, *p.shape) for i, p in enumerate(ps)] for k in range(3 * count)]
        found: list[list[Tensor]] = []

        def source(k: int) -> Callable[[], list[Tensor]]:
            def gradient() -> list[Tensor]:
                place = 3 * k + (int(torch.randint(3, ())) if draws else 0)
                if k == 0:
                    found.clear()
                found.append([p.detach() - t.to(p) for p, t in zip(ps, targets[place], strict=True)])
                return found[-1]

            return gradient

        constraint = KeptGradientConstraint(ps, [source(k) for k in range(count)], strength=strength)
        return Made(
            constraint,
            lambda step: max(against(old, step.seen) for old in found),
            [t for each in targets for t in each],
        )

    return make


def ogd(pairs: Pairs, finished: int, strength: float) -> Made:
    weights, stored = named(pairs), StoredDirections()
    for k in range(finished):
        rows = [{name: random(90 + 50 * k + i, *p.shape) for name, p in weights.items()} for i in range(4)]
        stored = stored.with_domain(f"{k}", rows)
    constraint = OGDConstraint(weights, stored.directions)

    def violation(step: Step) -> float:
        moved = {n: p.detach() - b for (n, p), b in zip(weights.items(), step.before, strict=True)}
        along = torch.stack([stored.directions[n].flatten(1) @ m.flatten() for n, m in moved.items()]).sum(0)
        return share(along, torch.cat([m.flatten() for m in moved.values()]))

    return Made(constraint, violation, list(stored.directions.values()))


@dataclass
class Sketch:
    """Gradients of a few sequences as thin factors: left (n, d_out, k), right (n, k, d_in)."""

    left: dict[str, Tensor]
    right: dict[str, Tensor]


def make_sketch(pairs: Pairs, seed: int, n: int = 4, k: int = 2) -> Sketch:
    shapes = {pair.module: (pair.b.shape[0], pair.a.shape[1]) for pair in pairs}
    return Sketch(
        {m: random(seed + i, n, d, k) for i, (m, (d, _)) in enumerate(shapes.items())},
        {m: random(seed + 9 + i, n, k, d) for i, (m, (_, d)) in enumerate(shapes.items())},
    )


def inner_product_gradients(sketch: Sketch, pairs: Pairs, values: list[Tensor]) -> Tensor:
    """∂⟨G_n, ΔW⟩ by all A and B at some values, by automatic differentiation in float64, shape (n, p)."""
    leaves = [v.detach().double().requires_grad_(True) for v in values]
    rows = []
    for n in range(len(next(iter(sketch.left.values())))):
        total = torch.zeros((), dtype=torch.float64)
        for i, pair in enumerate(pairs):
            gradient = sketch.left[pair.module][n].double() @ sketch.right[pair.module][n].double()
            total = total + (gradient * (pair.scaling * leaves[2 * i + 1] @ leaves[2 * i])).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)]))
    return torch.stack(rows)


def ogd_lora(pairs: Pairs, finished: int, strength: float) -> Made:
    sketches = [make_sketch(pairs, 300 + 40 * k, k=1 + k) for k in range(finished)]
    constraint = OGDLoRAConstraint(pairs, [s.left for s in sketches], [s.right for s in sketches])

    def violation(step: Step) -> float:
        moved = [p.detach() - b for p, b in zip(parameters(pairs), step.before, strict=True)]
        flat = torch.cat([m.double().flatten() for m in moved])
        rows = torch.cat([inner_product_gradients(s, pairs, step.before) for s in sketches])
        return share(rows / rows.norm(dim=1, keepdim=True) @ flat, flat)

    return Made(constraint, violation, [t for s in sketches for t in (*s.left.values(), *s.right.values())])


def weight_step(pairs: Pairs, finished: int, strength: float) -> Made:
    matrices = {pair.module: pair.b for pair in pairs}
    bases = {
        name: torch.linalg.qr(random(40 + i, m.shape[1], finished)).Q
        for i, (name, m) in enumerate(matrices.items())
    }
    constraint = WeightStepConstraint(matrices, bases, free=[pair.a for pair in pairs])

    def violation(step: Step) -> float:
        moved = [pair.b.detach() - before for pair, before in zip(pairs, step.before[1::2], strict=True)]
        return max(share(m @ bases[pair.module], m) for pair, m in zip(pairs, moved, strict=True))

    return Made(constraint, violation, list(bases.values()))


def frozen(pairs: Pairs, finished: int, strength: float) -> Made:
    importance = {
        name: random(60 + i, *p.shape).square() * float(finished > 0)
        for i, (name, p) in enumerate(named(pairs).items())
    }
    top = torch.cat([v.flatten() for v in importance.values()]).sort(descending=True).values
    constraint = FrozenWeightsConstraint(named(pairs), importance, share=0.1 * strength)

    def violation(step: Step) -> float:
        least = top[int(0.1 * strength * len(top)) - 1]
        moved = zip(parameters(pairs), step.before, importance.values(), strict=True)
        return max(float((p.detach() - b)[v >= least].abs().sum()) for p, b, v in moved)

    return Made(constraint, violation, list(importance.values()))


def penalty(
    build: Callable[[Pairs, int, float], tuple[Constraint, Callable[[list[Tensor]], Tensor], list[Tensor]]],
) -> Callable[[Pairs, int, float], Made]:
    """Obeyed is a penalty whose gradient, by automatic differentiation, was added."""

    def make(pairs: Pairs, finished: int, strength: float) -> Made:
        constraint, value, given = build(pairs, finished, strength)

        def violation(step: Step) -> float:
            leaves = [b.detach().clone().requires_grad_(True) for b in step.before]
            wanted = torch.autograd.grad(value(leaves), leaves, allow_unused=True)
            differences, sizes = [], []
            for seen, own, found in zip(step.seen, step.own, wanted, strict=True):
                more = torch.zeros_like(own) if found is None else found
                differences.append((seen - own - more).flatten())
                sizes.append(more.flatten())
            return share(torch.cat(differences), torch.cat(sizes))

        return Made(constraint, violation, given)

    return make


def build_ewc(decay: float | None):
    def build(pairs: Pairs, finished: int, strength: float):
        memory, terms = DiagonalMemory(), []
        for k in range(finished):
            fisher = {
                n: random(20 + 30 * k + i, *p.shape).square() for i, (n, p) in enumerate(named(pairs).items())
            }
            ends = {n: random(25 + 30 * k + i, *p.shape) for i, (n, p) in enumerate(named(pairs).items())}
            memory = memory.with_domain(f"{k}", fisher, ends, decay=decay)
            terms.append((fisher, ends))
        weights = named(pairs) if finished else {}
        constraint = EWCConstraint(weights, memory.importance, memory.anchor, memory.constant, strength)

        def value(leaves: list[Tensor]) -> Tensor:
            total = sum(leaf.sum() * 0.0 for leaf in leaves)
            for place, (fisher, own_ends) in enumerate(terms):
                factor = 1.0 if decay is None else decay ** (finished - 1 - place)
                ends = own_ends if decay is None else terms[-1][1]
                for leaf, f, end in zip(leaves, fisher.values(), ends.values(), strict=True):
                    total = total + strength / 2 * factor * (f * (leaf - end) ** 2).sum()
            return total

        return constraint, value, [*memory.importance.values(), *memory.anchor.values()]

    return build


def build_ewc_lora(pairs: Pairs, finished: int, strength: float):
    shapes = {pair.module: (pair.b.shape[0], pair.a.shape[1]) for pair in pairs}
    importance = {m: random(30 + i, *s).square() for i, (m, s) in enumerate(shapes.items())}
    bound = pairs if finished else []

    def value(leaves: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for pair, a, b in zip(bound, leaves[::2], leaves[1::2], strict=True):
            total = total + strength / 2 * (importance[pair.module] * (pair.scaling * b @ a) ** 2).sum()
        return total

    return EWCLoRAConstraint(bound, importance, strength), value, list(importance.values())


def build_olora(pairs: Pairs, finished: int, strength: float):
    old = [random(50 + i, 3 * finished, pair.a.shape[1]) for i, pair in enumerate(pairs)]

    def value(leaves: list[Tensor]) -> Tensor:
        return strength * sum((o @ a.T).abs().sum() for o, a in zip(old, leaves[::2], strict=True))

    return OLoRAConstraint([pair.a for pair in pairs], old, strength), value, old


def all_cases(make_memory, layers) -> dict[str, Case]:
    return {
        "fisher": Case("subspace", subspace("fisher", make_memory, layers), scales=False),
        "orthogonal": Case("subspace", subspace("orthogonal", make_memory, layers), scales=False),
        "gem": Case("predicted", predicted("gem", make_memory, layers)),
        "agem": Case("predicted", predicted("agem", make_memory, layers)),
        "diagonal": Case("predicted", predicted("diagonal", make_memory, layers)),
        "gem, kept": Case("kept", kept(lambda finished: finished)),
        "agem, kept": Case("kept", kept(lambda finished: min(finished, 1), draws=True)),
        "ogd": Case("ogd", ogd, scales=False),
        "ogd, lora": Case("ogd_lora", ogd_lora, scales=False),
        "weight step": Case("weight_step", weight_step, scales=False),
        "freeze_important": Case("frozen", frozen),
        "ewc": Case("ewc", penalty(build_ewc(None))),
        "online_ewc": Case("ewc", penalty(build_ewc(0.9))),
        "ewc_lora": Case("ewc_lora", penalty(build_ewc_lora)),
        "olora": Case("olora", penalty(build_olora)),
    }


NAMES = list(all_cases(None, None))
