"""Which old data is mixed in? Kept examples of finished domains, as tokens."""

from constrained_adapters.rehearsal.buffer import ReplayBuffer
from constrained_adapters.rehearsal.mix import mix_rows

__all__ = ["ReplayBuffer", "mix_rows"]
