"""Which old data is mixed in? Kept examples, what the model writes itself, general text, golden sets."""

from constrained_adapters.rehearsal.buffer import ReplayBuffer, row_bytes
from constrained_adapters.rehearsal.generative import (
    least_length_tokens,
    most_diverse,
    refine_answers,
    write_examples,
)
from constrained_adapters.rehearsal.golden import GoldenSet, write_golden_set
from constrained_adapters.rehearsal.kept_file import KeptFile, Privacy
from constrained_adapters.rehearsal.mix import Source, mix_sources
from constrained_adapters.rehearsal.selection import Selection, order_rows

__all__ = [
    "GoldenSet",
    "KeptFile",
    "Privacy",
    "ReplayBuffer",
    "Selection",
    "Source",
    "least_length_tokens",
    "mix_sources",
    "most_diverse",
    "order_rows",
    "refine_answers",
    "row_bytes",
    "write_examples",
    "write_golden_set",
]
