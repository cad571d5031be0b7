"""The one thread that owns the model: it steps the scheduler, and runs calls between two steps."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from constrained_adapters.serving.failures import StoppingError, as_known_error
from constrained_adapters.serving.scheduler import Scheduler

T = TypeVar("T")
log = logging.getLogger(__name__)


class ModelThread:
    """Runs a scheduler until it is stopped.

    Args:
        scheduler: Called from this thread alone.
        between: Called before every step, such as to drop adapters that nobody uses.
    """

    def __init__(self, scheduler: Scheduler, between: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self._between = between
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._wake = threading.Event()
        self._give_up_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Say that there is something new: an answer waits, or one was cancelled."""
        self._wake.set()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run ``function`` on the model's thread, between two steps.

        Raises:
            StoppingError: The thread is being stopped.
        """
        if self._give_up_at is not None:
            raise StoppingError("the server is stopping")
        future: Future[T] = Future()
        self._calls.put((function, future))
        self._wake.set()
        return future

    def stop(self, limit_seconds: float) -> None:
        """Finish what runs and waits, at most for ``limit_seconds``; the rest ends with an error."""
        self._give_up_at = time.monotonic() + limit_seconds
        self._wake.set()
        self._thread.join(limit_seconds + 60)

    def _run(self) -> None:
        while True:
            self._wake.clear()
            self._run_calls()
            stopping = self._give_up_at is not None
            if stopping and (not self.scheduler.has_work() or time.monotonic() > (self._give_up_at or 0)):
                self.scheduler.fail_all(
                    StoppingError("the server was stopped before the answer was finished")
                )
                self._run_calls()
                return
            try:
                self._between()
                if self.scheduler.has_work():
                    self.scheduler.step()
                    continue
            except Exception as error:
                # A step ends its own answers' errors itself; what comes here is a fault of ours.
                log.exception("a step failed")
                self.scheduler.fail_all(as_known_error(error))
                continue
            self._wake.wait()

    def _run_calls(self) -> None:
        while True:
            try:
                function, future = self._calls.get_nowait()
            except Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
