"""From names and numbers to one objective, and from tokens to the rows that it is taken on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from constrained_adapters.data.tokens import Tokens
from constrained_adapters.errors import ConfigError, TrainingError, UnknownNameError
from constrained_adapters.objectives.base import Objective, Teachers, WeightedSum
from constrained_adapters.objectives.cross_entropy import CrossEntropy
from constrained_adapters.objectives.distillation import Distillation
from constrained_adapters.objectives.prompts import PromptLearning
from constrained_adapters.objectives.rows import LabelledDataset, LabelledRow
from constrained_adapters.objectives.stm import SelectiveTokenMasking

# In the order in which they prepare rows: prompts add scored tokens, masking takes some away, and what
# attaches columns comes last.
OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "prompts": PromptLearning,
    "stm": SelectiveTokenMasking,
    "cross_entropy": CrossEntropy,
    "distillation": Distillation,
}


def make_objective(
    names: Sequence[str] = (),
    *,
    label_smoothing: float = 0.0,
    weights: Mapping[str, float] | None = None,
    settings: Mapping[str, Mapping[str, float]] | None = None,
) -> Objective:
    """Cross-entropy, with the objectives named added to it.

    Args:
        names: Of ``OBJECTIVES``, in any order; ``cross_entropy`` is always there.
        label_smoothing: ε of the cross-entropy.
        weights: Of the sum, by name; 1 where none is given.
        settings: Arguments of the objectives, by name.

    Returns:
        A plain :class:`~.cross_entropy.CrossEntropy` where nothing is added to it, a
        :class:`~.base.WeightedSum` else.

    Raises:
        UnknownNameError: No such objective.
        ConfigError: A weight or a setting is out of range, or belongs to an objective that is not named.

    >>> make_objective().label_smoothing
    0.0
    """
    wanted = {*names, "cross_entropy"}
    for name in sorted(wanted - set(OBJECTIVES)):
        raise UnknownNameError.of("objective", name, OBJECTIVES)
    weights, settings = dict(weights or {}), dict(settings or {})
    for name in [*weights, *settings]:
        if name not in wanted:
            raise ConfigError(
                f"a weight or a setting of the objective {name!r} has no effect",
                got=f"objectives: {', '.join(sorted(wanted))}",
                expected=f"it only with {name}",
            )
    settings["cross_entropy"] = {**settings.get("cross_entropy", {}), "label_smoothing": label_smoothing}
    if wanted == {"cross_entropy"} and weights.get("cross_entropy", 1.0) == 1.0:
        return CrossEntropy(label_smoothing)
    return WeightedSum(
        {
            name: (weights.get(name, 1.0), make(**settings.get(name, {})))
            for name, make in OBJECTIVES.items()
            if name in wanted
        }
    )


def is_plain(objective: Objective) -> bool:
    """Whether it is the cross-entropy that every language model computes itself, on rows as they are."""
    return isinstance(objective, CrossEntropy) and objective.label_smoothing == 0.0


def prepare_rows(objective: Objective, rows: Sequence[Tokens], teachers: Teachers) -> LabelledDataset:
    """Prepare the rows of a domain's training, each once, however often it occurs.

    Args:
        objective: That is minimised on them.
        rows: In the order of training; one that comes again is the same object.
        teachers: Brought into their states here; the caller puts the model into its own afterwards.

    Returns:
        The rows in their order, and as facts ``masked_ratio``, the share of labels that were taken out, and
        ``unlabelled_rows``, how many different rows have none left; both 0 where nothing masks.

    Raises:
        TrainingError: No row has a label left.
        ModelError: A teacher does not suit the model.
    """
    different = {id(row): row for row in rows}
    before = [LabelledRow.of(row) for row in different.values()]
    after = objective.prepare(before, teachers)
    num_before, num_after = _num_labels(before), _num_labels(after)
    if sum(num_after) == 0:
        raise TrainingError(
            "no token is left to learn",
            got=f"{len(different)} rows with {sum(num_before)} labels, all masked",
            expected="at least one",
            hint="a higher threshold of the token masking, or other data",
        )
    place = {identity: index for index, identity in enumerate(different)}
    facts = {
        "masked_ratio": 1.0 - sum(num_after) / sum(num_before),
        "unlabelled_rows": float(sum(left == 0 for left in num_after)),
    }
    return LabelledDataset([after[place[id(row)]] for row in rows], facts)


def _num_labels(rows: Sequence[LabelledRow]) -> list[int]:
    """How many labels count, row by row."""
    return [sum(label >= 0 for label in row.labels[1:]) for row in rows]
