"""The evaluation part of a method's summary."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from constrained_adapters.evaluation.summary import summarise

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
