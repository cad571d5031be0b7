"""Which old data is mixed in? Kept examples of finished domains, as tokens."""

from constrained_adapters.rehearsal.buffer import ReplayBuffer
from constrained_adapters.rehearsal.mix import Source, mix_rows, mix_sources
from constrained_adapters.rehearsal.selection import Selection, order_rows, row_losses

__all__ = ["ReplayBuffer", "Selection", "Source", "mix_rows", "mix_sources", "order_rows", "row_losses"]
