"""Write the domains of plan.yaml: news, licences and speeches as running text, without question and answer.

Run:   python benchmarks/running_text/make_data.py
Makes: news.jsonl, licences.jsonl and speeches.jsonl beside this file (not committed)
"""

from __future__ import annotations

import json
from pathlib import Path

from constrained_adapters.data.packaged import load_packaged

SOURCES = {"news": "finance", "licences": "law", "speeches": "history"}
NUM_TEXTS = 900


def main() -> None:
    """Take the text out of each prompt: between the words before its first colon and its last line."""
    for name, source in SOURCES.items():
        splits = load_packaged(source)
        prompts = [str(each.prompt) for split in ("train", "test") for each in splits[split]]
        texts = [prompt.split(": ", 1)[1].rpartition("\n")[0] for prompt in prompts]
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in dict.fromkeys(texts)]
        file = Path(__file__).with_name(f"{name}.jsonl")
        file.write_text("\n".join(rows[:NUM_TEXTS]) + "\n", encoding="utf-8")
        print(f"{file.name}: {len(rows[:NUM_TEXTS])} texts")


if __name__ == "__main__":
    main()
