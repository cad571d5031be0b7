"""The line of answers that wait for a slot: bounded, and safe for any thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from constrained_adapters.serving.answer import Answer
from constrained_adapters.serving.failures import QueueFullError


class WaitingLine:
    """First come, first served.

    Args:
        capacity: Most answers that wait.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._line: deque[Answer] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._line)

    def join(self, answers: Sequence[Answer], free: int = 0) -> None:
        """Put the answers of one request at the end, all or none.

        Args:
            answers: One or more.
            free: Slots that are free now: whoever takes one does not wait.

        Raises:
            QueueFullError: There is no room for all of them.
        """
        with self._lock:
            if len(self._line) + len(answers) > self.capacity + free:
                raise QueueFullError(
                    "the server has more requests than it may keep waiting",
                    got=f"{len(self._line)} waiting, {len(answers)} more",
                    expected=f"at most {self.capacity} waiting",
                    hint="try again later, as Retry-After says",
                )
            self._line.extend(answers)

    def take(self, fits: Callable[[Answer], bool]) -> list[Answer]:
        """Take answers from the front while they fit."""
        taken = []
        with self._lock:
            while self._line and fits(self._line[0]):
                taken.append(self._line.popleft())
        return taken

    def put_back(self, answers: Sequence[Answer]) -> None:
        """Put answers at the front again, in their order."""
        with self._lock:
            self._line.extendleft(reversed(answers))

    def remove(self, is_over: Callable[[Answer], bool]) -> list[Answer]:
        """Take out those of whom ``is_over`` says so."""
        with self._lock:
            over = [each for each in self._line if is_over(each)]
            if over:
                self._line = deque(each for each in self._line if not any(each is one for one in over))
        return over
