"""Opens a decoder once, in a process of its own, for `start_up.py`: seconds, and those of one read of its weights.

    python start_up_slice.py ENGINE SIZES THREADS CACHED KEEP

ENGINE: folder of an engine, two below its bundle; SIZES: `contract.Sizes` as JSON; CACHED: 1 if the files are in the
page cache, 0 if they are dropped from it before they are read and before the decoder is opened; KEEP: 1 to open what an
earlier process kept of it, or keep it, 0 to do without.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from r1v_export.contract import Sizes
from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine
from r1v_export.user_cache import cache_folder

_PIECE_BYTES = 1 << 20


def drop(file: Path) -> None:
    """Take a file out of the page cache, as far as nobody maps it."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read(file: Path) -> int:
    """The bytes of a file, all of them read into one buffer."""
    buffer, total = bytearray(_PIECE_BYTES), 0
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            total += count
    return total


def main(folder: Path, sizes: Sizes, threads: int, cached: bool, keep: bool) -> None:
    bundle = folder.parents[1]
    weights = bundle / "graphs" / "decoder.data"
    cache = cache_folder("onnxruntime")
    files = [weights, *(cache.rglob("weights.data") if cache else ())]
    engine = OnnxRuntimeEngine(folder, bundle, sizes, "cpu", threads, keep=keep)

    def prepare() -> None:
        for file in files:
            read(file) if cached else drop(file)

    prepare()
    start = time.perf_counter()
    size_bytes = read(weights)
    read_s = time.perf_counter() - start
    prepare()
    start, start_cpu = time.perf_counter(), time.process_time()
    engine.cache_limits()  # opens the decoder
    open_s, open_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    print(json.dumps({"size_bytes": size_bytes, "read_s": read_s, "open_s": open_s, "open_cpu_s": open_cpu_s}))


if __name__ == "__main__":
    flags = [word == "1" for word in sys.argv[4:6]]
    main(Path(sys.argv[1]).absolute(), Sizes(**json.loads(sys.argv[2])), int(sys.argv[3]), *flags)
