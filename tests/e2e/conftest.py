"""The command as a user calls it, forked from one warm process for all tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


class Crma:
    """The command, forked from a warm process; ``text`` is what the last call printed."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("fork_server.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.text = ""

    def __call__(
        self, folder: Path, *arguments: str, place: str | None = None, number: int = 1, action: str = "kill"
    ) -> int:
        job = {"cwd": str(folder), "arguments": arguments, "place": place, "number": number, "action": action}
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        self.text = "".join((folder / name).read_text("utf-8") for name in ("stdout.txt", "stderr.txt"))
        return code

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="session")
def crma():
    command = Crma()
    yield command
    command.close()
