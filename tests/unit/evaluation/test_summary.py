"""The evaluation part of a method's summary."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from constrained_adapters.evaluation.matrix import intransigence
from constrained_adapters.evaluation.summary import summarise, with_references
from constrained_adapters.results import MethodResult

EXACT = [[0.0, 0.0], [0.8, 0.1], [0.6, 0.9]]
CHOICE = [[0.3, 0.3], [0.9, 0.4], [0.8, 1.0]]
LOSS = [[5.0, 5.0], [1.0, 4.0], [1.2, 0.5]]


def test_all_keys() -> None:
    matrices = {"exact_match": EXACT, "choice_accuracy": CHOICE, "loss": LOSS}
    assert summarise(matrices, [2.0, 2.1, math.log(9.0)]) == {
        "accuracy": pytest.approx(0.75),
        "backward_transfer": pytest.approx(-0.2),
        "forward_transfer": pytest.approx(0.1),
        "forgetting": pytest.approx(0.2),
        "learned": pytest.approx(0.85),
        "choice_accuracy": pytest.approx(0.9),
        "drift_percent": pytest.approx(20.0),
        "general_perplexity_base": pytest.approx(math.exp(2.0)),
        "general_perplexity": pytest.approx(9.0),
        "general_change_percent": pytest.approx(100 * (9.0 / math.exp(2.0) - 1)),
    }


def test_what_does_not_exist_is_left_out() -> None:
    text_only = {"exact_match": [[None, None]] * 3, "choice_accuracy": [[None, None]] * 3, "loss": LOSS}
    assert set(summarise(text_only, [None, None, None])) == {"drift_percent"}
    assert summarise({}, []) == {}


def test_result_is_json() -> None:
    endless = {"loss": [[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]}
    assert json.loads(json.dumps(summarise(endless, [1e9, 0.0]), allow_nan=False)) == {
        "general_perplexity": 1.0
    }


def test_needs_no_torch() -> None:
    code = "import sys, constrained_adapters.evaluation.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def method(name: str, exact: list[list[float | None]], recipe: str = "") -> MethodResult:
    return MethodResult(
        name=name,
        recipe=recipe or name,
        settings={},
        domains=["law", "tax"],
        matrices={"exact_match": exact},
        general_nats=[],
        summary={"accuracy": 0.5},
        records=[],
    )


def test_methods_are_compared_with_the_references_of_their_run() -> None:
    joint = method("joint", [[0.0, 0.0], [1.0, 0.9], [1.0, 0.9]])
    separate = method("each alone", [[0.0, 0.0], [1.0, 0.0], [1.0, 0.5]], "separate")
    crma = method("crma", [[0.0, 0.0], [0.8, 0.0], [0.7, 0.4]])
    lora = method("lora", [[0.0, 0.0], [0.9, 0.0], [0.1, 0.6]])
    found = {each.name: each.summary for each in with_references([lora, crma, separate, joint])}
    assert found["crma"]["plasticity_percent"] == pytest.approx(100 * 0.6 / 0.75)
    assert found["crma"]["intransigence"] == pytest.approx(0.95 - 0.6)
    assert found["lora"]["intransigence"] == pytest.approx(0.2)
    assert "plasticity_percent" not in found["each alone"] and "intransigence" not in found["joint"]
    assert crma.summary == {"accuracy": 0.5}  # the given ones stay as they are
    without = {each.name: each.summary for each in with_references([lora, crma])}
    assert without["crma"]["plasticity_percent"] == pytest.approx(100 * 0.6 / 0.75)  # of sequential LoRA's
    assert "intransigence" not in without["crma"]


def test_a_reference_with_a_hole_or_that_learnt_nothing_is_no_reference() -> None:
    crma = method("crma", [[0.0, 0.0], [0.8, 0.0], [0.7, 0.4]])
    holed = method("joint", [[0.0, 0.0], [None, 0.9], [None, 0.9]])
    nothing = method("lora", [[0.0, 0.0]] * 3)
    found = with_references([crma, holed, nothing])[0].summary
    assert found == {"accuracy": 0.5}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_intransigence_is_the_mean_gap_to_the_reference(pairs: list[tuple[float, float]]) -> None:
    size = len(pairs)
    own = [[0.0] * size] + [[pairs[j][0]] * size for j in range(size)]
    reference = [[0.0] * size] * size + [[best for _, best in pairs]]
    expected = sum(best - mine for mine, best in pairs) / size
    assert intransigence(own, reference) == pytest.approx(expected, abs=1e-9)
