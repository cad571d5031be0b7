"""Parameters of a domain's own beside some that all share: layers and rank differ from domain to domain.

The shared adapter is learnt in the first domain's turn, beside that domain's own, and then frozen; later
domains learn their own on top of it. So finished domains stay exactly as they were, which a shared part that
went on learning would not allow without old data; what the first domain teaches is all that it holds
(after residual adapters, Rebuffi et al. 2017, arXiv 1705.08045, where the shared network is pre-trained).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from constrained_adapters.model import CRMAModel
from constrained_adapters.models.targets import resolve_targets
from constrained_adapters.recipes import SHARED
from constrained_adapters.workspace import atomic_directory


@final
class Isolation:
    """Makes, keeps and finds the adapters of a model whose domains are kept apart.

    Args:
        base: Without adapters.
        layers: Names of the layers of each domain's own adapter; those of the model's config for the others.
        ranks: Rank of each domain's own adapter; that of the model's config for the others.
        shared_rank: Of the shared adapter, in the layers of the model's config; 0 makes none.
        folder: Of the method; the shared adapter is written there.

    Raises:
        ConfigError: An embedding or the output head is named.
        UnknownNameError: A name matches no linear layer.
    """

    def __init__(
        self,
        base: Any,
        *,
        layers: Mapping[str, Sequence[str]],
        ranks: Mapping[str, int],
        shared_rank: int,
        folder: Path,
    ) -> None:
        self._layers = {domain: resolve_targets(base, names) for domain, names in layers.items()}
        self._ranks, self._shared_rank, self._home = dict(ranks), shared_rank, folder / SHARED

    @property
    def shared_names(self) -> list[str]:
        """What acts beside every domain's own adapter."""
        return [SHARED] if self._shared_rank else []

    def create(self, model: CRMAModel, number: int, domain: str) -> None:
        """Add a domain's own adapter, and before the first the shared one."""
        if number == 1 and self._shared_rank:
            model.create_adapter(SHARED, domain_id=0, adapter_dim=self._shared_rank)
        model.create_adapter(
            domain, domain_id=number, adapter_dim=self._ranks.get(domain), layers=self._layers.get(domain)
        )

    def finish(self, model: CRMAModel) -> None:
        """Freeze and write the shared adapter, where it has just been learnt."""
        if SHARED in model.adapter_names and not self._home.is_dir():
            model.freeze_adapter(SHARED)
            with atomic_directory(self._home) as folder:
                model.save_adapter(folder, SHARED)

    def resume(self, model: CRMAModel) -> None:
        """Load the shared adapter, where it is not there yet."""
        if self._shared_rank and SHARED not in model.adapter_names:
            model.load_adapter(self._home, SHARED)
