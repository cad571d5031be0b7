"""Runs a server: its port first, so that a second one on it fails before anything is loaded."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from constrained_adapters.errors import ConstrainedAdaptersError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from fastapi import FastAPI


class PortError(UsageError):
    """The address cannot be listened on."""


def check_extra() -> None:
    """Check that the extra ``serve`` is installed.

    Raises:
        MissingExtraError: It is not.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client", "httpx2"):
        try:
            __import__(package)
        except ImportError:
            raise MissingExtraError.of(package.replace("_", "-"), "serve", "to serve") from None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address; requests wait in it until the server runs.

    Args:
        host: A name or an address.
        port: 0 takes a free one.

    Raises:
        PortError: The address is taken, forbidden or none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
            taken.listen(2048)
        except BaseException:
            taken.close()
            raise
    except (OSError, OverflowError) as error:
        raise PortError(
            "the server cannot listen there",
            got=f"{host}:{port}: {getattr(error, 'strerror', None) or error}",
            expected="an address of this machine and a free port",
            hint=f"--port {port + 1}, or --port 0 for any that is free" if port < 65535 else "--port 0",
        ) from None
    return taken


def run_app(app: FastAPI, taken: socket.socket, *, stop_seconds: float) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what runs.

    Raises:
        ConstrainedAdaptersError: The engine did not start.
    """
    import uvicorn

    config: Any = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, round(stop_seconds)),
        timeout_keep_alive=30,
        server_header=False,
        h11_max_incomplete_event_size=65536,
    )
    server = _server_class()(config)
    server.run(sockets=[taken])
    if not server.started:
        failure: Exception | None = getattr(app.state, "failure", None)
        raise failure or ConstrainedAdaptersError("the server did not start", hint="the log above says why")


def _server_class() -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's server, except that a stop that was asked for and done is no failure.

        uvicorn raises the signal once more when it has stopped, so that the process dies of it.
        """

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in numbers}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server
