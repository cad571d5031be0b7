"""Runs in llama.cpp's own environment: a task as JSON on stdin, the answers in a JSON file.

``python llama_cpp_runner.py RESULT.json < TASK.json`` with a task of the fields ``model`` (a GGUF file),
``adapters`` (name → LoRA GGUF file), ``prompts`` (token ids), ``texts`` (to be tokenised), ``max_tokens`` and
``requests`` (pairs of a prompt's number and weights by adapter). Each answer has the ``tokens`` that greedy
decoding writes and their ``logprobs``; ``tokenised`` has the ids of the texts. With ``rounds``, the first
prompt is answered again and again, by the base and each adapter in turn: ``cpu_seconds`` by adapter.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np


class Engine:
    """One context; the adapters of a request are set as ``llama-server`` sets ``lora: [{id, scale}]``."""

    def __init__(self, model: str, adapters: dict[str, str]) -> None:
        exact = {"type_k": 0, "type_v": 0}  # keys and values in float32 (GGML_TYPE_F32), not in float16
        threads = {"n_threads": 1, "n_threads_batch": 1}
        self.llama = llama_cpp.Llama(model, n_ctx=256, logits_all=True, verbose=False, **exact, **threads)
        self.adapters = {}
        for name, path in adapters.items():
            self.adapters[name] = llama_cpp.llama_adapter_lora_init(self.llama.model, path.encode())
            if not self.adapters[name]:
                raise RuntimeError(f"llama.cpp does not load {path}")

    def use(self, weights: dict[str, float]) -> None:
        names = list(weights)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * len(names))(*[self.adapters[n] for n in names])
        scales = (ctypes.c_float * len(names))(*[weights[n] for n in names])
        code = llama_cpp.llama_set_adapters_lora(self.llama.ctx, handles, len(names), scales)
        if code != 0:
            raise RuntimeError(f"llama.cpp does not set {weights}")

    def answer(self, prompt: list[int], max_tokens: int) -> dict:
        self.llama.reset()
        self.llama.eval(prompt)
        tokens, logprobs = [], []
        for _ in range(max_tokens):
            logits = np.asarray(self.llama.scores[self.llama.n_tokens - 1], dtype=np.float64)
            token = int(logits.argmax())
            tokens.append(token)
            logprobs.append(float(logits[token] - np.logaddexp.reduce(logits)))
            self.llama.eval([token])
        return {"tokens": tokens, "logprobs": logprobs}


def main() -> None:
    task = json.load(sys.stdin)
    engine = Engine(task["model"], task["adapters"])
    answers = []
    for number, weights in task["requests"]:
        engine.use(weights)
        answer = engine.answer(task["prompts"][number], task["max_tokens"])
        answers.append({"prompt": number, "weights": weights, **answer})
    texts = task.get("texts", [])
    tokenised = [engine.llama.tokenize(text.encode(), add_bos=False, special=True) for text in texts]
    seconds = {name: [] for name in ["", *task["adapters"]]}
    for _ in range(task.get("rounds", 0)):
        for name, taken in seconds.items():
            engine.use({name: 1.0} if name else {})
            begun = time.process_time()
            engine.answer(task["prompts"][0], task["max_tokens"])
            taken.append(time.process_time() - begun)
    result = {"answers": answers, "tokenised": tokenised, "cpu_seconds": seconds}
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
