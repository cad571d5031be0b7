"""vLLM as a process of its own, started and stopped along with the server."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx2

from constrained_adapters.errors import ConstrainedAdaptersError, UsageError
from constrained_adapters.serving.settings import ServeSettings

COMMAND_VARIABLE = "CRMA_VLLM"
START_SECONDS = 600.0


def find_vllm() -> str | None:
    """The command that starts vLLM: the one that ``CRMA_VLLM`` names, else ``vllm`` on the path."""
    named = os.environ.get(COMMAND_VARIABLE)
    return shutil.which(named) if named else shutil.which("vllm")


class VllmProcess:
    """One vLLM server on a port of this machine.

    Args:
        model: Folder or hub name of the base.
        settings: Slots and context.
        max_rank: Of any mix of adapters.
        context_tokens: Most tokens of prompt and answer.
        on_gpu: Otherwise it computes in float32 on the CPU, as the embedded engine does.

    Raises:
        UsageError: vLLM is not installed.
    """

    def __init__(
        self, model: str, settings: ServeSettings, *, max_rank: int, context_tokens: int, on_gpu: bool
    ) -> None:
        command = find_vllm()
        if command is None:
            raise UsageError(
                "vLLM is not installed",
                got=f"no command 'vllm', and no {COMMAND_VARIABLE}",
                hint=f"install it in an environment of its own; {COMMAND_VARIABLE}=/path/to/its/bin/vllm",
            )
        self._arguments = [
            *_serve_command(command, model), "--host", "127.0.0.1", "--served-model-name", "base",
            "--enable-lora", "--max-lora-rank", str(max_rank), "--max-loras", str(min(settings.slots, 16)),
            "--max-cpu-loras", "64", "--max-model-len", str(context_tokens),
            "--max-num-seqs", str(settings.slots),
        ]  # fmt: skip
        if not on_gpu:
            self._arguments += ["--dtype", "float32", "--enforce-eager"]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path(tempfile.mkdtemp(prefix="crma-vllm-")) / "vllm.log"

    async def start(self) -> str:
        """Start it and wait until it answers; return its address.

        Raises:
            ConstrainedAdaptersError: It ended, or did not answer in ten minutes.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        address = f"http://127.0.0.1:{port}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._arguments, "--port", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    "VLLM_CPU_KVCACHE_SPACE": "1",
                    "VLLM_NO_USAGE_STATS": "1",
                    **os.environ,
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
                },
                start_new_session=True,  # a Ctrl-C is ours: it is stopped when its requests are done
            )
        end = time.monotonic() + START_SECONDS
        async with httpx2.AsyncClient(trust_env=False) as client:
            while time.monotonic() < end:
                if self._process.poll() is not None:
                    raise self._failed(f"it ended with exit code {self._process.returncode}")
                try:
                    if (await client.get(f"{address}/health", timeout=5)).status_code == 200:
                        return address
                except httpx2.HTTPError:
                    pass
                await asyncio.sleep(0.5)
        await self._end()
        raise self._failed(f"no answer in {START_SECONDS:.0f} seconds")

    async def stop(self) -> None:
        """End it, and drop its log; the log of one that failed stays."""
        await self._end()
        shutil.rmtree(self._log.parent, ignore_errors=True)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 10)):
            os.killpg(process.pid, number)
            try:
                await asyncio.to_thread(process.wait, seconds)
                return
            except subprocess.TimeoutExpired:
                continue

    def _failed(self, why: str) -> ConstrainedAdaptersError:
        lines = self._log.read_text("utf-8", "replace").splitlines()
        errors = [line for line in lines if "Error" in line] or lines
        return ConstrainedAdaptersError(
            "vLLM did not start",
            got=f"{why}: {errors[-1].strip()[:300] if errors else ''}",
            hint=f"see {self._log}",
        )


def _serve_command(command: str, model: str) -> list[str]:
    """How this vLLM is started: by its module where the command would fail.

    The command asks for the version of a package ``vllm``; CPU builds are installed under another name.
    """
    python = Path(command).resolve().with_name("python")
    asked = "import importlib.metadata as known; known.version('vllm')"
    if python.exists() and subprocess.run([python, "-c", asked], capture_output=True, check=False).returncode:
        return [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [command, "serve", model]
