"""The server against its own OpenAPI description: schemathesis sends what fits it and what does not."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from tests.e2e.serving import serving, tiny_engine
from tests.unit.serving.conftest import with_adapters

from constrained_adapters.serving.settings import ServeSettings

pytest.importorskip("schemathesis")


def test_every_reply_is_as_described_and_none_is_a_fault_of_the_server(tiny_llama, tiny_tokenizer, tmp_path):
    settings = ServeSettings(slots=4, context_tokens=128, max_new_tokens=8, adapter_root=tmp_path)
    model = with_adapters(tiny_llama, tiny_tokenizer)
    with serving(tiny_engine(model, tiny_tokenizer, settings), settings) as address:
        description = httpx2.get(f"{address}/openapi.json").json()
        for name in ("ChatRequest", "CompletionRequest"):  # else nearly every request ends at an unknown name
            description["components"]["schemas"][name]["properties"]["model"]["enum"] = ["base", "law", "lw"]
        (tmp_path / "openapi.json").write_text(json.dumps(description))
        found = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "run", str(tmp_path / "openapi.json"),
                "--url", address, "--phases", "coverage,fuzzing", "--max-examples", "15", "--seed", "1",
                "--generation-deterministic", "--suppress-health-check", "all", "--no-color",
                # What no schema can say, such as lengths that add up to more than the context, is a 400.
                "--exclude-checks", "positive_data_acceptance",
            ],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
        body = {"model": "law", "prompt": "abc", "max_tokens": 3}
        assert httpx2.post(f"{address}/v1/completions", json=body).status_code == 200
