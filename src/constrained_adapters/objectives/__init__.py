"""What is minimised? Cross-entropy, with other losses added to it or tokens taken out of it."""

from constrained_adapters.objectives.base import Objective, Teachers, WeightedSum
from constrained_adapters.objectives.cross_entropy import CrossEntropy
from constrained_adapters.objectives.distillation import Distillation
from constrained_adapters.objectives.prepare import OBJECTIVES, is_plain, make_objective, prepare_rows
from constrained_adapters.objectives.prompts import PromptLearning
from constrained_adapters.objectives.rows import LabelledDataset, LabelledRow, collate_labelled
from constrained_adapters.objectives.stm import SelectiveTokenMasking

__all__ = [
    "OBJECTIVES",
    "CrossEntropy",
    "Distillation",
    "LabelledDataset",
    "LabelledRow",
    "Objective",
    "PromptLearning",
    "SelectiveTokenMasking",
    "Teachers",
    "WeightedSum",
    "collate_labelled",
    "is_plain",
    "make_objective",
    "prepare_rows",
]
