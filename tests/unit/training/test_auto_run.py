"""A run whose strength and rank are ``auto``: recorded with their figures, the same after a stop."""

from __future__ import annotations

import pytest

from constrained_adapters.model.auto import AUTO_RANKS, AUTO_STRENGTHS
from constrained_adapters.training.observer import SilentObserver
from constrained_adapters.training.run import run_config

from .conftest import DOMAINS, StopAt, StopError, numbers


class Listener(SilentObserver):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def stage(self, method: str, domain: str | None, text: str) -> None:
        self.texts.append(text)


def test_what_is_chosen_is_told_recorded_and_the_same_after_a_stop(tiny_run):
    def run(output: str, observer: SilentObserver):
        config = tiny_run.config({"recipe": "crma", "constraint_strength": "auto"}, output=output)
        config.adapter.rank = "auto"
        return run_config(config, observer=observer)

    listener = Listener()
    whole = run("whole", listener)
    with pytest.raises(StopError):
        run("stopped", StopAt(step=("数学", 3)))
    stopped = run("stopped", SilentObserver())
    assert numbers(stopped.methods[0].model_dump()) == numbers(whole.methods[0].model_dump())
    for record, entry in zip(whole.methods[0].records, whole.ledger, strict=True):
        facts = record.constraint
        assert facts["chosen_strength"] in AUTO_STRENGTHS and facts["chosen_rank"] in AUTO_RANKS
        assert 0.0 < facts["gradient_conflict"] <= 1.0 and 0.0 < facts["rank_share"] <= 1.0
        assert (entry["rank"], entry["constraint_strength"]) == (
            facts["chosen_rank"],
            facts["chosen_strength"],
        )
        assert entry["constraint"]["gradient_conflict"] == facts["gradient_conflict"]
    told = [text for text in listener.texts if ": strength 0." in text and "; rank " in text]
    assert [text.partition(":")[0] for text in told] == DOMAINS
