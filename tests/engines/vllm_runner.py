"""Runs in vLLM's own environment: a task as JSON on stdin, the answers as JSON in the file that is named.

``python vllm_runner.py RESULT.json < TASK.json`` with a task of the fields
``model``, ``adapters`` (name → folder), ``max_lora_rank``, ``prompts`` (token ids), ``max_tokens`` and
``requests`` (pairs of a prompt's number and an adapter's name or null). Each answer has ``tokens`` and their
``logprobs``. With ``rounds``, the prompts are answered as one batch again and again, by the base and each
adapter in turn: ``cpu_seconds`` by adapter, of all its processes.
"""

import json
import sys
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
        detokenize=False,
    )
    answers = []
    for adapter in dict.fromkeys(adapter for _, adapter in task["requests"]):
        numbers = [number for number, each in task["requests"] if each == adapter]
        prompts = [{"prompt_token_ids": task["prompts"][number]} for number in numbers]
        lora = requests[adapter] if adapter else None
        outputs = engine.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
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
    whole = SamplingParams(temperature=0.0, max_tokens=task["max_tokens"], ignore_eos=True, detokenize=False)
    batch = [{"prompt_token_ids": prompt} for prompt in task["prompts"]]
    seconds = {name: [] for name in ["", *folders]}
    for _ in range(task.get("rounds", 0)):
        for name, taken in seconds.items():
            begun = cpu_seconds()
            engine.generate(batch, whole, lora_request=requests.get(name), use_tqdm=False)
            taken.append(cpu_seconds() - begun)
    Path(sys.argv[1]).write_text(json.dumps({"answers": answers, "cpu_seconds": seconds}))


def cpu_seconds() -> float:
    """Of this process and its children so far: what a shared machine does not lengthen."""
    import psutil

    whole = psutil.Process()
    times = [process.cpu_times() for process in (whole, *whole.children(recursive=True))]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
