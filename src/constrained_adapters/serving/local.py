"""The embedded engine: this process holds the model and decodes all requests in one batch."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constrained_adapters.errors import ConfigError, ModelError
from constrained_adapters.serving.answer import Answer, Piece, Wanted
from constrained_adapters.serving.choice import Choice
from constrained_adapters.serving.decoder import BatchDecoder
from constrained_adapters.serving.failures import StoppingError
from constrained_adapters.serving.prompts import check_choices, encode_prompts, new_tokens
from constrained_adapters.serving.registry import ModelRegistry
from constrained_adapters.serving.replies import Collected, ReplyWriter
from constrained_adapters.serving.requests import GenerationBody
from constrained_adapters.serving.routes import Route, Talk, asked_talk, chosen
from constrained_adapters.serving.scheduler import Scheduler
from constrained_adapters.serving.settings import ServeSettings
from constrained_adapters.serving.slots import slot_bytes
from constrained_adapters.serving.waiting import WaitingLine
from constrained_adapters.serving.worker import ModelThread

if TYPE_CHECKING:
    from constrained_adapters.model.crma import CRMAModel

DEFAULT_CONTEXT = 2048


class LocalEngine:
    """Decodes requests of different domains and mixes in one batch.

    Args:
        model: With its adapters loaded, in evaluation mode.
        tokenizer: Of the base.
        domains: The adapters, with their weights, that answer for each domain.
        settings: Slots, context and limits.
        route: The router; None: ``auto`` is not served.

    Raises:
        ModelError: The architecture cannot be decoded in such a batch.
        ConfigError: The slots need more memory than there is, or the context is longer than the model's.
    """

    name = "local"

    def __init__(
        self,
        model: CRMAModel,
        tokenizer: Any,
        domains: Mapping[str, Mapping[str, float]],
        settings: ServeSettings,
        route: Route | None = None,
    ) -> None:
        self.settings, self._model, self._route = settings, model, route
        self.context_tokens = context_of(model.config, settings.context_tokens)
        self.kv_bytes = slot_bytes(model.config, settings.slots, self.context_tokens, model.dtype)
        self._tokenizer = tokenizer
        # The front encodes while the model's thread decodes.
        self._front_tokenizer = copy.deepcopy(tokenizer)
        self._ends = end_tokens(model, tokenizer)
        self._num_tokens = int(model.get_input_embeddings().weight.shape[0])
        self._registry = ModelRegistry()
        for name, adapters in domains.items():
            self._registry.publish(name, adapters)
        self._waiting = WaitingLine(settings.queue)
        decoder = BatchDecoder(model, settings.slots, self.context_tokens)
        self._scheduler = Scheduler(decoder, self._waiting, prefill_tokens=settings.prefill_tokens)
        self._thread = ModelThread(self._scheduler, self._drop_unused)
        self._numbers = itertools.count(1)
        self._stopping = False

    async def start(self) -> None:
        """Start the model's thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Finish what runs and waits, within the limit."""
        self._stopping = True
        await asyncio.to_thread(self._thread.stop, self.settings.stop_seconds)

    async def is_ready(self) -> bool:
        """Whether the model's thread runs and is to go on."""
        return self._thread.is_alive() and not self._stopping

    def models(self) -> list[str]:
        """Names of the domains."""
        return self._registry.names()

    def routes(self) -> bool:
        """Whether there is a router."""
        return self._route is not None

    async def choose(self, request: GenerationBody) -> Choice:
        """The adapters that answer.

        Raises:
            RequestError: A name is not served, or the request contradicts itself.
        """

        async def ask() -> Choice:
            prompts = encode_prompts(request, self._front_tokenizer, self._num_tokens)
            self._check_length(request, prompts)
            talk = asked_talk(request, self._front_tokenizer)
            return await asyncio.wrap_future(self._thread.call(lambda: self._routed(talk)))

        return await chosen(request, self.models(), None if self._route is None else ask)

    async def answer(self, request: GenerationBody, choice: Choice) -> dict[str, Any]:
        """The whole reply.

        Raises:
            ConstrainedAdaptersError: The request cannot be answered.
        """
        writer = ReplyWriter(request, choice.facts())
        pieces, num_prompt_tokens, num_answers = self._begin(request, choice)
        answers = [Collected() for _ in range(num_answers)]
        async for index, piece in pieces:
            answers[index].add(piece)
        return writer.whole(answers, num_prompt_tokens)

    async def stream(self, request: GenerationBody, choice: Choice) -> AsyncIterator[dict[str, Any]]:
        """The chunks of the reply; the last one has the counts of tokens.

        Raises:
            ConstrainedAdaptersError: The request cannot be answered.
        """
        writer = ReplyWriter(request, choice.facts())
        pieces, num_prompt_tokens, num_answers = self._begin(request, choice)
        counts = [0] * num_answers
        try:
            async for index, piece in pieces:
                counts[index] = piece.num_tokens
                for chunk in writer.chunks(index, piece):
                    yield chunk
        finally:
            await pieces.aclose()
        yield writer.usage_chunk(num_prompt_tokens, sum(counts))

    async def load(self, name: str, folder: Path, *, replace: bool) -> None:
        """Load an adapter between two steps.

        Raises:
            RequestError: The name is reserved or taken.
            ConstrainedAdaptersError: There is no adapter of this base in the folder.
        """
        self._registry.check_new(name, replace=replace)
        await asyncio.wrap_future(self._thread.call(lambda: self._load(name, folder)))

    async def unload(self, name: str) -> None:
        """Serve ``name`` no more.

        Raises:
            UnknownModelError: It is not served.
        """
        self._registry.withdraw(name)
        self._thread.wake()

    def gauges(self) -> dict[str, float]:
        """Slots, those taken, the line, adapters, and the bytes of keys and values."""
        return {
            "slots": self.settings.slots,
            "slots_taken": self.settings.slots - self._scheduler.num_free,
            "waiting": len(self._waiting),
            "domains": len(self.models()),
            "adapters_loaded": len(self._model.adapter_names),
            "kv_bytes": self.kv_bytes,
        }

    def _check_length(self, request: GenerationBody, prompts: list[list[int]]) -> int:
        longest = max(map(len, prompts))
        return new_tokens(request, longest, self.context_tokens, self.settings.max_new_tokens)

    def _begin(self, request: GenerationBody, choice: Choice) -> tuple[_Pieces, int, int]:
        """Put the answers of a request into the line; return their pieces, and the tokens and answers."""
        prompts = encode_prompts(request, self._front_tokenizer, self._num_tokens)
        most = self._check_length(request, prompts)
        num_answers = check_choices(request, self.settings.max_choices)
        if self._stopping:
            raise StoppingError("the server is stopping and takes no more requests")
        wanted = Wanted(
            most, request.sampling(), request.stops, time.monotonic() + self.settings.timeout_seconds
        )
        pieces = _Pieces(num_answers, self._thread)
        for number, prompt in enumerate(each for each in prompts for _ in range(request.num_choices)):
            hold = self._registry.hold(choice.weights)
            answer = Answer(
                prompt,
                hold.adapters,
                wanted,
                index=number,
                tokenizer=self._tokenizer,
                ends=frozenset() if request.ignore_eos else self._ends,
                deliver=pieces.receiver(number),
            )
            answer.on_end.append(lambda hold=hold: self._registry.release(hold))  # type: ignore[misc]
            pieces.answers.append(answer)
        try:
            self._waiting.join(pieces.answers, free=max(0, self._scheduler.num_free))
        except BaseException:
            for answer in pieces.answers:
                answer.drop()
            raise
        self._thread.wake()
        return pieces, sum(map(len, prompts)), num_answers

    # ---- on the model's thread

    def _routed(self, talk: Talk) -> Choice:
        assert self._route is not None
        self._scheduler.decoder.release()
        return self._route(talk)

    def _load(self, name: str, folder: Path) -> None:
        self._scheduler.decoder.release()
        own = f"{name}-{next(self._numbers)}"
        while own in self._model.adapter_names:
            own = f"{name}-{next(self._numbers)}"
        try:
            self._model.load_adapter(folder, own)
            with self._model.mixed_batch([own]):
                pass
        except Exception as error:
            if own in self._model.adapter_names:
                with suppress(Exception):
                    self._model.delete_adapter(own)
            if isinstance(error, RuntimeError | ValueError | KeyError):
                raise ModelError(
                    "the adapter does not fit the base",
                    got=f"{folder.name}: {str(error).strip().splitlines()[-1].strip()[:200]}",
                ) from None
            raise
        self._registry.publish(name, {own: 1.0})

    def _drop_unused(self) -> None:
        unused = self._registry.take_unused()
        if unused:
            self._scheduler.decoder.release()
        for adapter in unused:
            self._model.delete_adapter(adapter)


class _Pieces:
    """The pieces of a request's answers as they come; closed, it gives up those that are not finished."""

    def __init__(self, num_answers: int, thread: ModelThread) -> None:
        self.answers: list[Answer] = []
        self._open = num_answers
        self._thread = thread
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    def receiver(self, index: int) -> Callable[[Piece], None]:
        """What the model's thread calls with the pieces of one answer."""

        def receive(piece: Piece) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody reads any more
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))

        return receive

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> tuple[int, Piece]:
        if not self._open:
            raise StopAsyncIteration
        try:
            index, piece = await self._queue.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if piece.error is not None:
            await self.aclose()
            raise piece.error
        self._open -= piece.finish is not None
        return index, piece

    async def aclose(self) -> None:
        """Give up what is not finished."""
        for answer in self.answers:
            answer.cancelled = True
        self._thread.wake()


def context_of(config: Any, asked: int | None) -> int:
    """The context that is served: what is asked for, else the model's, at most :data:`DEFAULT_CONTEXT`.

    Raises:
        ConfigError: More is asked for than the model was made for.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if asked is None:
        return min(longest or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if longest is not None and asked > longest:
        raise ConfigError(
            "the context is longer than the model's",
            got=f"--context {asked}",
            expected=f"at most {longest} tokens",
        )
    return asked


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: those of the model's generation settings, and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(int(each) for each in [*ends, tokenizer.eos_token_id] if each is not None)
