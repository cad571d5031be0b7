"""How an engine behind this server is told which adapters answer: each engine has its own API for that."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2

from constrained_adapters.export.lora import export_lora
from constrained_adapters.serving.failures import RequestError, UpstreamError

Fields = dict[str, Any]
"""Fields of a request's body by which an engine knows the adapters."""


class UpstreamAdapters(Protocol):
    """Makes an engine answer with a weighted set of adapters."""

    kind: str

    @asynccontextmanager
    def using(self, adapters: Mapping[str, float]) -> AsyncIterator[Fields]:
        """Within this context a body with these fields is answered by ``adapters`` (weights by folder)."""


@dataclass
class _Loaded:
    """One mix in the engine."""

    name: str
    folder: Path
    ready: asyncio.Task[None]
    num_users: int = 0


class LoadedMixes:
    """vLLM's way: a mix is written as one exact LoRA and loaded under a name of its own.

    Args:
        client: Speaks to the engine.
        base_model: The base's name there.
        exports: Folder for the LoRAs, which the engine must be able to read.
        capacity: Mixes that stay loaded; those that were not used for longest go first.
    """

    kind = "vllm"

    def __init__(
        self, client: httpx2.AsyncClient, base_model: str, exports: Path, capacity: int = 32
    ) -> None:
        self._client, self._base_model, self._exports, self._capacity = client, base_model, exports, capacity
        self._loaded: dict[str, _Loaded] = {}
        self._numbers = itertools.count()

    @asynccontextmanager
    async def using(self, adapters: Mapping[str, float]) -> AsyncIterator[Fields]:
        """The name of the mix, which is loaded if it is not yet."""
        if not adapters:
            yield {"model": self._base_model}
            return
        key = json.dumps(sorted(adapters.items()))
        mix = self._loaded.pop(key, None) or self._begin(key, adapters)
        self._loaded[key] = mix  # the last one is the one used last
        mix.num_users += 1
        try:
            try:
                await asyncio.shield(mix.ready)
            except Exception:
                if self._loaded.get(key) is mix:  # the next request tries again
                    del self._loaded[key]
                raise
            yield {"model": mix.name}
        finally:
            mix.num_users -= 1
            await self._drop_unused()

    def _begin(self, key: str, adapters: Mapping[str, float]) -> _Loaded:
        name = f"crma-{next(self._numbers)}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        folder = self._exports / name
        return _Loaded(name, folder, asyncio.create_task(self._load(name, folder, dict(adapters))))

    async def _load(self, name: str, folder: Path, adapters: dict[str, float]) -> None:
        await asyncio.to_thread(export_lora, {**adapters}, folder, pad_rank="auto", force=True)
        body = {"lora_name": name, "lora_path": str(folder)}
        await checked(self._client.post("/v1/load_lora_adapter", json=body))

    async def _drop_unused(self) -> None:
        idle = [key for key, mix in self._loaded.items() if not mix.num_users and mix.ready.done()]
        for key in idle[: max(0, len(self._loaded) - self._capacity)]:
            mix = self._loaded.pop(key)
            await checked(self._client.post("/v1/unload_lora_adapter", json={"lora_name": mix.name}))
            await asyncio.to_thread(shutil.rmtree, mix.folder, ignore_errors=True)


class ScaledAdapters:
    """llama.cpp's way: it was started with the adapters, and a request says the scale of each.

    Args:
        base_model: The base's name there.
        ids: The engine's number of each adapter, by the name of the adapter's file or folder.
    """

    kind = "llama.cpp"

    def __init__(self, base_model: str, ids: Mapping[str, int]) -> None:
        self._base_model, self._ids = base_model, dict(ids)

    @asynccontextmanager
    async def using(self, adapters: Mapping[str, float]) -> AsyncIterator[Fields]:
        """All adapters with their scales, 0 for those that have no part.

        Raises:
            RequestError: The engine was started without one of them.
        """
        scales = dict.fromkeys(self._ids.values(), 0.0)
        for folder, weight in adapters.items():
            name = Path(folder).name
            if name not in self._ids:
                raise RequestError(
                    f"the engine was started without the adapter {name!r}",
                    got=f"it has {', '.join(self._ids) or 'none'}",
                    hint=f"start it with --lora {name}.gguf",
                    param="model",
                )
            scales[self._ids[name]] = weight
        yield {
            "model": self._base_model,
            "lora": [{"id": number, "scale": scale} for number, scale in scales.items()],
        }


async def find_upstream(
    client: httpx2.AsyncClient, base_model: str | None, exports: Path
) -> UpstreamAdapters:
    """Ask an engine what it is, and so how it takes adapters.

    Args:
        client: Speaks to it.
        base_model: The base's name there; None takes its first model.
        exports: Folder for adapters that it is to load.

    Raises:
        UpstreamError: It cannot be reached, or serves no such model.
    """
    listed = (await checked(client.get("/v1/models"))).json()
    names = [str(each["id"]) for each in listed.get("data", [])]
    if not names or (base_model is not None and base_model not in names):
        raise UpstreamError(
            "the engine does not serve that model",
            got=repr(base_model),
            expected=", ".join(names) or "any model",
            hint="--upstream-model NAME",
        )
    name = base_model or names[0]
    try:
        reply = await client.get("/lora-adapters")  # llama.cpp's alone
        if reply.status_code == 200:
            return ScaledAdapters(name, {Path(each["path"]).stem: each["id"] for each in reply.json()})
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        pass
    return LoadedMixes(client, name, exports)


async def checked(call: Any) -> httpx2.Response:
    """Await a call to an engine; a failure becomes one of ours.

    Raises:
        UpstreamError: The engine cannot be reached, or refuses.
    """
    try:
        reply: httpx2.Response = await call
    except httpx2.HTTPError as error:
        raise UpstreamError(
            "the engine behind this server cannot be reached",
            got=type(error).__name__,
            hint="see whether it runs, and its log",
        ) from None
    if reply.status_code >= 400:
        raise UpstreamError(
            "the engine behind this server refuses",
            got=f"{reply.request.url.path}: {reply.status_code} {message_of(reply)}",
        )
    return reply


def message_of(reply: httpx2.Response) -> str:
    """What an engine says is wrong."""
    try:
        body = reply.json()
    except ValueError:
        return reply.text[:300]
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
