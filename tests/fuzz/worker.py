"""A process that opens inputs: one JSON line in (a surface, with a seed or a file), one JSON line out."""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

from r1v_export.errors import R1VError
from r1v_export.runner.bench import peak_memory_bytes
from tests.fuzz.surfaces import Surface, surfaces

MAX_ERROR_BYTES = 4000


def open_input(surface: Surface, content: bytes) -> dict[str, Any]:
    """What became of one input."""
    try:
        surface.use(content)
    except R1VError as error:
        size = max(len(json.dumps(error.as_dict(), indent=2)), len(str(error).encode("utf-8", "surrogatepass")))
        return {"outcome": "refused" if size < MAX_ERROR_BYTES else "long error", "detail": error.what}
    except BaseException:  # Panics of libraries in Rust are no Exceptions.
        return {"outcome": "crashed", "detail": traceback.format_exc()[-3000:]}
    return {"outcome": "opened", "detail": ""}


def _content(surface: Surface, job: dict[str, Any]) -> bytes:
    if "file" in job:
        return Path(job["file"]).read_bytes()
    return surface.sound if "sound" in job else surface.make(Random(job["seed"]))


def main(model: str, bundle: str) -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    known = surfaces(Path(model), Path(bundle))
    print(json.dumps({name: surface.weight for name, surface in known.items()}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        surface = known[job["surface"]]
        content = _content(surface, job)
        result = open_input(surface, content)
        print(json.dumps({**result, "peak_bytes": peak_memory_bytes()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
