"""What the memories predicted stands beside what was measured, in the record and in the ledger."""

from __future__ import annotations

import pytest


def test_measured_rises_are_differences_of_r(tiny_run):
    result = tiny_run("crma")
    method = result.methods[0]
    losses, general = method.matrices["loss"], method.general_nats
    for number, record in enumerate(method.records, start=1):
        wanted = {name: losses[number][j] - losses[number - 1][j] for j, name in enumerate(method.domains)}
        wanted = {name: wanted[name] for name in method.domains[: number - 1]}
        wanted["base"] = general[number] - general[number - 1]
        assert record.measured_increase_nats == pytest.approx(wanted)
        assert set(record.predicted_increase_nats) == set(wanted) == set(record.measured_increase_intervals)
        for name, (low, high) in record.measured_increase_intervals.items():
            assert low <= wanted[name] <= high and low < high
        assert result.ledger[number - 1]["measured_increase_nats"] == pytest.approx(wanted)
