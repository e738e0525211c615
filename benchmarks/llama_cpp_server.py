"""Runs in llama.cpp's own environment: llama.cpp's HTTP server over two GGUF files. See serving_peers.py.

ENVIRONMENT/bin/python llama_cpp_server.py MODEL.gguf MMPROJ.gguf --slots 32 --slot-context 1024 --threads 2
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path


def main() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("mmproj", type=Path)
    parser.add_argument("--slots", type=int, required=True, help="requests that are decoded together")
    parser.add_argument("--slot-context", type=int, required=True, help="tokens of a slot")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.mmproj.path = str(arguments.model), str(arguments.mmproj)
    parameters.n_parallel, parameters.n_ctx = arguments.slots, arguments.slots * arguments.slot_context
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = arguments.threads
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
