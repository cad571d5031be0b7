"""Runs in vLLM's own environment: a task as JSON on stdin, the answers as JSON in the file that is named.

``python vllm_runner.py RESULT.json < TASK.json`` with a task of the fields
``model``, ``adapters`` (name → folder), ``max_lora_rank``, ``prompts`` (token ids), ``max_tokens`` and
``requests`` (pairs of a prompt's number and an adapter's name or null). Each answer has ``tokens`` and their
``logprobs``; ``seconds`` is the wall time of all requests of one adapter in one batch.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    task = json.load(sys.stdin)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        model=task["model"],
        dtype="float32",
        enable_lora=True,
        max_lora_rank=task["max_lora_rank"],
        max_loras=min(4, len(task["adapters"])),
        max_model_len=256,
        enforce_eager=True,
    )
    folders = task["adapters"]
    requests = {name: LoRARequest(name, i + 1, folders[name]) for i, name in enumerate(folders)}
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=task["max_tokens"],
        logprobs=1,
        ignore_eos=bool(task.get("ignore_eos")),
        detokenize=False,
    )
    answers, seconds = [], {}
    for adapter in dict.fromkeys(adapter for _, adapter in task["requests"]):
        numbers = [number for number, each in task["requests"] if each == adapter]
        prompts = [{"prompt_token_ids": task["prompts"][number]} for number in numbers]
        lora = requests[adapter] if adapter else None
        engine.generate(prompts[:1], SamplingParams(max_tokens=1), lora_request=lora, use_tqdm=False)
        begun = time.perf_counter()
        outputs = engine.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
        seconds[adapter or ""] = time.perf_counter() - begun
        for number, output in zip(numbers, outputs, strict=True):
            written = output.outputs[0]
            steps = zip(written.token_ids, written.logprobs, strict=True)
            answers.append(
                {
                    "prompt": number,
                    "adapter": adapter,
                    "tokens": list(written.token_ids),
                    "logprobs": [step[token].logprob for token, step in steps],
                }
            )
    Path(sys.argv[1]).write_text(json.dumps({"answers": answers, "seconds": seconds}))


if __name__ == "__main__":
    main()
