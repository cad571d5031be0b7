"""What can go wrong between a request and its answer. Which HTTP status each is: :mod:`.error_bodies`."""

from __future__ import annotations

import torch

from constrained_adapters.errors import ConstrainedAdaptersError, UsageError


class ServingError(ConstrainedAdaptersError):
    """The server could not answer."""


class QueueFullError(ServingError):
    """More requests are waiting than may wait."""


class OverdueError(ServingError):
    """An answer was not finished in its time."""


class MemoryShortError(ServingError):
    """A pass needed more memory than there is."""


class StoppingError(ServingError):
    """The server is being stopped and takes no more requests."""


class UpstreamError(ServingError):
    """The engine behind this server failed or cannot be reached."""


class RequestError(UsageError):
    """A request asks for something that cannot be.

    Args:
        what: One sentence.
        got: What was found.
        expected: What would have been right.
        hint: What to try.
        param: The field at fault.
        code: OpenAI's word for it, such as ``context_length_exceeded``.
    """

    def __init__(
        self,
        what: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what, got=got, expected=expected, hint=hint)
        self.param, self.code = param, code


class UnknownModelError(RequestError):
    """No model of that name is served."""


def as_known_error(error: Exception) -> ConstrainedAdaptersError:
    """``error`` itself if it is ours; else one that says as much as a client may know."""
    if isinstance(error, ConstrainedAdaptersError):
        return error
    words = str(error)
    # The CPU's allocator raises a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate" in words:
        return MemoryShortError(
            "there was not enough memory for this request",
            hint="send a shorter prompt; or start the server with fewer --slots or a smaller --context",
        )
    return ServingError(f"the pass failed: {type(error).__name__}", hint="see the server's log")
