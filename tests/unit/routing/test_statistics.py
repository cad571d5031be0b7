"""Mean and covariance of a domain's prompts, and the file that holds them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from constrained_adapters.errors import WorkspaceError
from constrained_adapters.routing.statistics import METADATA_KEY, RANK, PromptStatistics


def vectors(count: int, width: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + 3.0


def of(rows: torch.Tensor) -> PromptStatistics:
    return PromptStatistics.of(rows, torch.full((len(rows),), 7.0), made_from="test", base_fingerprint="f")


def test_where_the_rank_suffices_the_covariance_is_that_of_the_prompts():
    rows = vectors(60)
    found = of(rows)
    torch.testing.assert_close(found.covariance(), torch.cov(rows.T), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean.double(), rows.mean(0), rtol=1e-6, atol=1e-6)
    assert (found.count, found.length) == (60, 7.0)


def test_beyond_the_rank_the_diagonal_is_exact_and_the_rest_is_the_best_of_its_rank():
    rows = vectors(200, width=50)
    found = of(rows).covariance()
    exact = torch.cov(rows.T)
    torch.testing.assert_close(found.diagonal(), exact.diagonal(), rtol=1e-5, atol=1e-5)
    values, directions = torch.linalg.eigh(exact)
    best = (directions[:, -RANK:] * values[-RANK:]) @ directions[:, -RANK:].T
    off = ~torch.eye(50, dtype=torch.bool)
    torch.testing.assert_close(found[off], best[off], rtol=1e-4, atol=1e-4)
    assert torch.linalg.eigvalsh(found).min() > -1e-6


@pytest.mark.parametrize("count", [1, 2, 9])
def test_no_more_directions_are_kept_than_half_of_the_prompts(count):
    assert len(of(vectors(count)).factors) == count // 2


def test_a_file_gives_back_what_was_saved(tmp_path):
    found = of(vectors(20))
    found.save(tmp_path / "数学.safetensors")
    again = PromptStatistics.load(tmp_path / "数学.safetensors")
    assert (again.count, again.length, again.made_from, again.base_fingerprint) == (20, 7.0, "test", "f")
    for name in ("mean", "variance", "factors"):
        assert torch.equal(getattr(again, name), getattr(found, name))


@pytest.mark.parametrize("damage", ["version", "bytes", "facts"])
def test_another_version_and_damage_are_told(tmp_path, damage):
    file = tmp_path / "routing.safetensors"
    if damage == "bytes":
        file.write_bytes(b"nothing")
    else:
        facts = {"version": 2 if damage == "version" else 1}
        save_file({"mean": torch.zeros(2)}, file, metadata={METADATA_KEY: json.dumps(facts)})
    with pytest.raises(WorkspaceError) as caught:
        PromptStatistics.load(file)
    assert str(file) in caught.value.got and caught.value.hint == "crma route --build"
