"""A server on a port of this machine, with a tiny model, run by a thread of the tests."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import uvicorn

from constrained_adapters.serving.app import create_app
from constrained_adapters.serving.local import LocalEngine
from constrained_adapters.serving.server import listen
from constrained_adapters.serving.settings import ServeSettings


@contextmanager
def running(app, seconds=20.0):
    """The address of a server of ``app``."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        until(lambda: server.started or not thread.is_alive(), seconds)
        assert server.started
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def serving(engine, settings, seconds=20.0):
    """The address of a server before ``engine``, which has some seconds to start."""
    return running(create_app(engine, settings, base_name="tiny"), seconds)


def tiny_engine(model, tokenizer, settings=None, route=None, domains=None):
    """The embedded engine on a tiny model: each adapter is a domain."""
    domains = domains or {name: {name: 1.0} for name in model.adapter_names}
    return LocalEngine(model, tokenizer, domains, settings or ServeSettings(context_tokens=256), route)


def until(condition, seconds=20.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)
