"""Runs ``crma`` in forks of one warm process, so that a test can kill it again and again within seconds.

Started as a script; reads one job a line from stdin and answers with its exit code (negative: the signal).
A job may name a function and the number of a call at which something happens, which makes the moment of a
``kill -9`` exact: in the middle of a step, of a checkpoint, of a memory.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

WARM = [
    "constrained_adapters.cli.run_status",
    "constrained_adapters.report.page",
    "constrained_adapters.training.run",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "transformers:AutoModelForCausalLM",
    "transformers:LlamaForCausalLM",
    "transformers:PreTrainedTokenizerFast",
    "transformers:Trainer",
]
"""What a run imports, some of it lazily; a fork would do that anew each time."""


def happen_at(place: str, number: int, action: str) -> None:
    """Let ``action`` (kill, interrupt, full) happen at the given call of ``module:attribute.path``."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == number and action == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if calls >= number and action == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(Path.cwd() / "full"))
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def run_job(job: dict[str, Any]) -> int:
    """In the fork: be ``crma`` with the job's arguments, folder and output files."""
    from constrained_adapters.cli.main import main

    os.chdir(job["cwd"])
    for stream, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job.get("place"):
        happen_at(job["place"], job["number"], job["action"])
    sys.argv = ["crma", *job["arguments"]]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def serve() -> None:
    """Answer jobs until stdin ends."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["COLUMNS"] = "200"  # no line of a table is folded
    for name in WARM:
        module, _, attribute = name.partition(":")
        getattr(importlib.import_module(module), attribute or "__name__")

    gc.freeze()  # Trainer collects garbage after each domain: only what the fork itself made
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 98
            try:
                code = run_job(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
