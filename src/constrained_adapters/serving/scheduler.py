"""Which answers take part in the next pass: new ones join between two steps, finished ones leave at once.

A step reads one piece of waiting prompts (so that a long one does not hold up the others for long), then lets
every running answer, whatever its adapters, write one token in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from constrained_adapters.serving.answer import Answer
from constrained_adapters.serving.decoder import BatchDecoder
from constrained_adapters.serving.failures import OverdueError, as_known_error
from constrained_adapters.serving.waiting import WaitingLine


class Scheduler:
    """Runs the answers of a waiting line; one thread calls it.

    Args:
        decoder: The model with its slots.
        waiting: Where answers come from.
        prefill_tokens: Most prompt tokens that are read between two steps of the running answers.
    """

    def __init__(self, decoder: BatchDecoder, waiting: WaitingLine, *, prefill_tokens: int) -> None:
        self.decoder, self.waiting, self.prefill_tokens = decoder, waiting, prefill_tokens
        self.running: list[Answer] = []
        """In the rows from 0 on."""
        self.entering: list[Answer] = []
        """Whose prompts are being read, in the rows after those."""

    @property
    def num_free(self) -> int:
        """Slots that nobody holds."""
        return self.decoder.cache.slots - len(self.running) - len(self.entering)

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self.entering or len(self.waiting))

    def step(self) -> None:
        """Let go who is done with, read a piece of new prompts, write one token of each running answer."""
        self._let_go()
        running = list(self.running)
        if not self.entering:
            self.entering = self._admit()
        if self.entering:
            self._read_prompts()
        if running:
            self._write(running)

    def fail_all(self, error: Exception) -> None:
        """End every answer with an error."""
        for answer in [*self.running, *self.entering, *self.waiting.remove(lambda _: True)]:
            answer.fail(error)
        self.running, self.entering = [], []

    def _let_go(self) -> None:
        for answer in [*self.running, *self.entering, *self.waiting.remove(_is_over)]:
            if answer.cancelled:
                answer.drop()
            elif answer.is_overdue():
                answer.fail(
                    OverdueError(
                        "the answer was not finished in its time",
                        got=f"{len(answer.tokens)} tokens written",
                        hint="ask for fewer tokens, or start the server with a larger --timeout",
                    )
                )
        self._close_gaps()

    def _admit(self) -> list[Answer]:
        """As many as there are slots, and as prompts, filled up to the longest, are within the piece."""
        group: list[Answer] = []

        def fits(answer: Answer) -> bool:
            if len(group) >= self.num_free:
                return False
            if group:
                width = max(len(each.prompt) for each in (*group, answer))
                if answer.alone or group[0].alone or (len(group) + 1) * width > self.prefill_tokens:
                    return False
            group.append(answer)
            return True

        return self.waiting.take(fits)

    def _read_prompts(self) -> None:
        entering = self.entering
        try:
            logits = self.decoder.prefill(len(self.running), entering, self.prefill_tokens)
        except Exception as error:
            self._could_not_read(error)
            return
        if logits is None:
            return
        self.running, self.entering = [*self.running, *entering], []
        self._choose(entering, logits)

    def _could_not_read(self, error: Exception) -> None:
        """One prompt may have been too much for the memory: each is tried alone before it is given up."""
        failed, self.entering = self.entering, []
        self.decoder.release()
        if len(failed) == 1:
            failed[0].fail(as_known_error(error))
            return
        for answer in failed:
            answer.alone, answer.num_cached = True, 0
        self.waiting.put_back(failed)

    def _write(self, running: list[Answer]) -> None:
        try:
            logits = self.decoder.decode(running)
        except Exception as error:
            self.decoder.release()
            for answer in running:
                answer.fail(as_known_error(error))
            self._close_gaps()
            return
        self._choose(running, logits)

    def _choose(self, answers: Sequence[Answer], logits: Tensor) -> None:
        for answer, row in zip(answers, logits, strict=True):
            try:
                answer.write(row)
            except Exception as error:
                answer.fail(as_known_error(error))
        self._close_gaps()

    def _close_gaps(self) -> None:
        """Take out finished answers and copy rows into their places, so that all lie side by side again."""
        running, entering, move = self.running, self.entering, self.decoder.cache.move
        num_before, place = len(running), 0
        while place < len(running):
            if not running[place].finished:
                place += 1
                continue
            last = running.pop()
            if place < len(running):
                running[place] = last
                if not last.finished:
                    move(len(running), place, last.num_cached)
        self.entering = []
        for row, answer in enumerate(entering, start=num_before):
            if not answer.finished:
                target = len(running) + len(self.entering)
                if target != row:
                    move(row, target, answer.num_cached)
                self.entering.append(answer)


def _is_over(answer: Answer) -> bool:
    return answer.cancelled or answer.is_overdue()
