"""llama.cpp's own server, from the environment ``.engines/llama_server`` (scripts/engines.py builds it).

``.engines/llama_server/bin/python scripts/llama_server.py MODEL.gguf [--lora FILE.gguf …] [--port N]``

``xllamacpp`` holds llama.cpp's server, compiled: what answers is the same C++ as in ``llama-server``. Prints
the server's address as a line and serves until its standard input is closed.
"""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description="llama.cpp's server.")
    parser.add_argument("model", help="the base, as GGUF")
    parser.add_argument("--lora", action="append", default=[], help="an adapter, as GGUF; may be repeated")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--slots", type=int, default=4, help="requests at a time")
    parser.add_argument("--context", type=int, default=256, help="tokens of a request with its answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="base", help="the base's name")
    options = parser.parse_args()

    import xllamacpp  # in the engine's environment alone

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = options.model, {options.name}
    params.n_parallel, params.n_ctx = options.slots, options.slots * options.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.port = options.port
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    adapters = []
    for path in options.lora:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, 0.0
        adapters.append(adapter)
    params.lora_adapters = adapters
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
