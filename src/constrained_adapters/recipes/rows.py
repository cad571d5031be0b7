"""The named methods, one row each: which of the six questions they answer, what they cost, their paper.

A row names only the answers that it is about. What it leaves open another row may answer
(:mod:`constrained_adapters.recipes.combine`), and what none answers gets the default: LoRA adapters,
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from constrained_adapters.config import ConstraintType

Trained = Literal[
    "nothing",
    "adapters",
    "weights",
    "biases",
    "freeze_first",
    "freeze_last",
    "last_layers",
    "singular_vectors",
    "houlsby",
    "pfeiffer",
    "parallel",
    "columns",
]
WEIGHTS: frozenset[Trained] = frozenset({"weights", "biases", "freeze_first", "freeze_last", "last_layers"})
"""The base's own weights, all or a part, which are trained on from domain to domain."""

BOTTLENECKS: frozenset[Trained] = frozenset({"houlsby", "pfeiffer", "parallel"})
"""Inserted modules: one set that is trained on, or a set a domain where each is scored alone."""

Bound = Literal[
    "agem",
    "ewc",
    "ewc_lora",
    "freeze_important",
    "gem",
    "ogd",
    "ogd_lora",
    "olora",
    "online_ewc",
    "online_ewc_lora",
]
Rehearsal = Literal["replay", "general_text", "all"]
ObjectiveName = Literal["distillation", "stm"]
Scored = Literal["together", "alone"]
Start = Literal["random", "inputs"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row: a method's own answers to the six questions of docs/methods.md.

    Args:
        name: As written in ``methods:``.
        summary: One line.
        source: Paper.
        trained: What is trained: nothing; a LoRA adapter a domain; the base's weights or some of them; the
            trailing singular vectors of the adapted layers (PEFT's OSF); bottleneck adapters; a column a
            domain. None: whatever other rows say.
        usual: What is trained where no row says it; None: LoRA adapters.
        scored: Each domain with its own adapter only, or with all that was learnt.
        shared: Whether an adapter that all domains share stands beside each domain's own.
        start: Where a new adapter starts: anywhere, or in the open directions that its domain uses most.
        constraint: What a step may not do, by CRMA's machinery.
        bounds: What a step may not do besides: penalties, and what takes parts of the gradient away.
        rehearsals: Which other data is mixed in: kept examples; text of no domain; all of the old data (no
            sequence at all).
        objectives: What is minimised beside, or taken out of, the cross-entropy.
        strength: Default ``constraint_strength``.
        step: What a step costs beside a plain one of what is trained.
        domain: What the end of a domain costs beside its training.
        kept: What is kept for each finished domain beside what was trained.
    """

    name: str
    summary: str
    source: str
    trained: Trained | None = None
    usual: Trained | None = None
    scored: Scored | None = None
    shared: bool | None = None
    start: Start | None = None
    constraint: ConstraintType | None = None
    bounds: tuple[Bound, ...] = ()
    rehearsals: tuple[Rehearsal, ...] = ()
    objectives: tuple[ObjectiveName, ...] = ()
    strength: float | None = None
    step: str = "none"
    domain: str = "none"
    kept: str = "nothing"

    @property
    def keeps_old_data(self) -> bool:
        """Whether examples of finished domains are kept."""
        return keeps_old_data(self.bounds, self.rehearsals)


def keeps_old_data(bounds: Collection[Bound], rehearsals: Collection[Rehearsal]) -> bool:
    """Whether examples of finished domains are kept for these answers."""
    return bool({"replay", "all"} & {*rehearsals} or {"gem", "agem"} & {*bounds})


_HU = "Hu et al. 2021, arXiv 2106.09685"

_ROWS = [
    Recipe(name="base", summary="the base as it is: nothing is trained", source="-", trained="nothing"),
    Recipe(
        name="joint",
        summary="all domains' data at once, one LoRA: the upper reference, which keeps all data",
        source="Caruana 1997, Multitask Learning",
        rehearsals=("all",),
        kept="all examples",
    ),
    Recipe(
        name="separate",
        summary="a LoRA a domain, each used for its own domain only: zero drift, if the domain is known",
        source=_HU,
        scored="alone",
    ),
    Recipe(
        name="isolation",
        summary="layers and rank of each domain's own LoRA beside a shared one, learnt with the first domain",
        source="after Rebuffi et al. 2017, arXiv 1705.08045",
        trained="adapters",
        scored="alone",
        shared=True,
        kept="nothing; the shared adapter, of all domains together",
    ),
    Recipe(
        name="lora",
        summary="sequential LoRA: an adapter for each domain on top of the earlier ones, nothing protected",
        source=_HU,
        trained="adapters",
    ),
    Recipe(
        name="full",
        summary="all weights, domain after domain, nothing protected",
        source="-",
        trained="weights",
        step="gradients and optimizer state of all weights",
    ),
    Recipe(
        name="freeze_first",
        summary="all weights but the embeddings and the first decoder layers, domain after domain",
        source="Lee et al. 2019, arXiv 1911.03090",
        trained="freeze_first",
        step="gradients and optimizer state of what is trained",
    ),
    Recipe(
        name="freeze_last",
        summary="all weights but the last decoder layers and the output head, domain after domain",
        source="-",
        trained="freeze_last",
        step="gradients and optimizer state of what is trained",
    ),
    Recipe(
        name="freeze_important",
        summary="all weights but the tenth that mattered most to earlier domains by their Fisher",
        source="after Mallya and Lazebnik 2018, arXiv 1711.05769, and EWC, arXiv 1612.00796",
        usual="weights",
        bounds=("freeze_important",),
        step="two indexed writes per matrix",
        domain="a forward and a backward pass for each sampled example",
        kept="one number per weight, of all domains together",
    ),
    Recipe(
        name="last_layers",
        summary="the last decoder layers and the output head, domain after domain",
        source="Howard and Ruder 2018, arXiv 1801.06146",
        trained="last_layers",
        step="gradients and optimizer state of what is trained",
    ),
    Recipe(
        name="bitfit",
        summary="the biases of the base, domain after domain; a base without any is refused",
        source="Ben Zaken et al. 2022, arXiv 2106.10199",
        trained="biases",
    ),
    Recipe(
        name="houlsby",
        summary="one bottleneck after attention and one after the MLP of each layer, trained on",
        source="Houlsby et al. 2019, arXiv 1902.00751",
        trained="houlsby",
        step="2·w·d multiply-adds per token, bottleneck and layer (width w)",
    ),
    Recipe(
        name="pfeiffer",
        summary="one bottleneck after the MLP of each layer, trained on",
        source="Pfeiffer et al. 2021, arXiv 2005.00247",
        trained="pfeiffer",
        step="2·w·d multiply-adds per token, bottleneck and layer (width w)",
    ),
    Recipe(
        name="parallel",
        summary="one bottleneck beside the MLP of each layer, trained on",
        source="He et al. 2022, arXiv 2110.04366",
        trained="parallel",
        step="2·w·d multiply-adds per token, bottleneck and layer (width w)",
    ),
    Recipe(
        name="progressive",
        summary="a narrow column a domain that reads the base and the earlier columns; the domain is known",
        source="Rusu et al. 2016, arXiv 1606.04671",
        trained="columns",
        scored="alone",
        step="a pass through the base and through every earlier column",
    ),
    Recipe(
        name="ewc",
        summary="all weights, each held to where earlier domains left it by their Fisher; on LoRA: ewc_lora",
        source="Kirkpatrick et al. 2017, arXiv 1612.00796",
        usual="weights",
        bounds=("ewc",),
        step="three multiply-adds per weight",
        domain="a forward and a backward pass for each sampled example",
        kept="two numbers per weight, of all domains together",
    ),
    Recipe(
        name="ewc_lora",
        summary="sequential LoRA under a penalty on ΔW by the diagonal Fisher of the full-size weight",
        source="Zheng et al. 2026, arXiv 2602.17559",
        trained="adapters",
        bounds=("ewc_lora",),
        step="products of rank r with each adapted matrix",
        domain="a forward and a backward pass over the sampled examples",
        kept="one number per adapted weight, of all domains together",
    ),
    Recipe(
        name="online_ewc",
        summary="as ewc, with one anchor, the last domain's, and a Fisher that fades from domain to domain",
        source="Schwarz et al. 2018, arXiv 1805.06370",
        usual="weights",
        bounds=("online_ewc",),
        step="three multiply-adds per weight",
        domain="a forward and a backward pass for each sampled example",
        kept="two numbers per weight, of all domains together",
    ),
    Recipe(
        name="gem",
        summary="no step against the gradient of any finished domain's kept examples",
        source="Lopez-Paz and Ranzato 2017, arXiv 1706.08840",
        bounds=("gem",),
        step="a forward and a backward pass over the kept examples of each domain",
        kept="its share of the buffer's examples",
    ),
    Recipe(
        name="agem",
        summary="no step against the gradient of a batch drawn from all kept examples",
        source="Chaudhry et al. 2019, arXiv 1812.00420",
        bounds=("agem",),
        step="a forward and a backward pass over one more batch",
        kept="its share of the buffer's examples",
    ),
    Recipe(
        name="gem_predicted",
        summary="LoRA under GEM with gradients that memories predict, without old data",
        source="after Lopez-Paz and Ranzato 2017, arXiv 1706.08840",
        trained="adapters",
        constraint="gem",
        strength=0.95,
        step="products of rank r with each memory, one quadratic programme",
        domain="a forward and three backward passes over the sampled examples",
        kept="low-rank factors of each adapted matrix",
    ),
    Recipe(
        name="agem_predicted",
        summary="LoRA under A-GEM with the gradient that memories predict, without old data",
        source="after Chaudhry et al. 2019, arXiv 1812.00420",
        trained="adapters",
        constraint="agem",
        strength=0.95,
        step="products of rank r with each memory",
        domain="a forward and three backward passes over the sampled examples",
        kept="low-rank factors of each adapted matrix",
    ),
    Recipe(
        name="ogd",
        summary="no step along stored gradients of finished domains' examples",
        source="Farajtabar et al. 2020, arXiv 1910.07104",
        bounds=("ogd",),
        step="a product with each stored gradient; on LoRA, of rank r",
        domain="a forward and a backward pass for each stored gradient",
        kept="stored gradients: thin factors of each adapted matrix, or one of all weights for each example",
    ),
    Recipe(
        name="olora",
        summary="sequential LoRA whose A is pushed orthogonal to the earlier domains' A",
        source="Wang et al. 2023, arXiv 2310.14152",
        trained="adapters",
        bounds=("olora",),
        step="r × r products with each earlier adapter",
    ),
    Recipe(
        name="orthogonal",
        summary="LoRA kept out of the subspace of inputs that occurred before (GPM)",
        source="Saha et al. 2021, arXiv 2103.09762",
        trained="adapters",
        constraint="orthogonal",
        strength=0.95,
        step="one projection of A and of its gradient",
        domain="a forward and a backward pass over the sampled examples",
        kept="input directions of each adapted matrix",
    ),
    Recipe(
        name="replay",
        summary="kept examples of the finished domains, mixed into the batches in place of new ones",
        source="Rolnick et al. 2019, arXiv 1811.11682",
        rehearsals=("replay",),
        kept="its share of the buffer's examples",
    ),
    Recipe(
        name="general_text",
        summary="text of no domain, mixed into the batches in place of new examples",
        source="after Ouyang et al. 2022, arXiv 2203.02155 (PPO-ptx)",
        rehearsals=("general_text",),
    ),
    Recipe(
        name="distillation",
        summary="the model before this domain teaches too, on the new domain's rows (LwF)",
        source="Li and Hoiem 2016, arXiv 1606.09282",
        objectives=("distillation",),
        domain="a forward pass over the rows before training",
    ),
    Recipe(
        name="stm",
        summary="tokens that surprise the untouched base are not learnt",
        source="Wu et al. 2025, arXiv 2501.14315",
        objectives=("stm",),
        domain="a forward pass over the rows before training",
    ),
    Recipe(
        name="osf",
        summary="the adapted layers' weights, off their leading singular subspace, by PEFT's own OSF tuner",
        source="Nayak et al. 2025, arXiv 2504.07097",
        trained="singular_vectors",
        step="one projection of each adapted matrix's gradient",
        domain="a singular value decomposition of each adapted matrix",
    ),
    Recipe(
        name="crma",
        summary="LoRA kept out of the inputs that the base and the finished domains depend on most",
        source="after Saha et al. 2021, arXiv 2103.09762; see docs/methods.md",
        trained="adapters",
        start="inputs",
        constraint="fisher",
        strength=0.8,
        step="one projection of A and of its gradient, products of rank r with each memory",
        domain="a forward pass over its first examples, a forward and two backward ones over a sample",
        kept="input directions and a gradient sketch of each adapted matrix",
    ),
]

RECIPES: Mapping[str, Recipe] = {row.name: row for row in _ROWS}

ALIASES: Mapping[str, str] = {"gpm": "orthogonal"}
"""Other names of rows."""
