"""One engine of `long_contexts.py`, in a process of its own: answers jobs from stdin, a line of JSON each.

    python long_contexts_engine.py KIND MODEL THREADS CONTEXT

KIND: `ours` or `openvino` (MODEL is the folder of an engine of ours, for ONNX Runtime or OpenVINO, two below its
bundle, with `sizes.json` in it), `genai` (a folder of its builder) or `llama` (a GGUF file). A job is {"tokens",
"new_tokens", "vocabulary", "goes_on"}, its answer {"prefill_s", "computed", "steps_s", "peak_bytes", "loaded_bytes",
"cache_bytes"}: seconds until the first token, the prompt's tokens that were computed in them, seconds of each token
after it, memory at its peak during the job and before it, and the cache's share of it as its shapes say, where they are
known.

With `goes_on`, a job's prompt continues that of the job before it, if that was so as well: each engine keeps the
prompt's keys and values and forgets what it wrote itself. So 1k, 4k, 16k and 32k tokens take the time of 32k alone. A
job without it, or with a prompt that is not longer, begins anew.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1v_export.contract import Engine, Sizes

CHUNK = 512
"""Prompt tokens of a run: `contract.PREFILL_CHUNK`, and llama.cpp's default."""
SIZES = "sizes.json"
"""In our engine's folder: a `contract.Sizes`, which a bundle's documents say and these builds have none of."""
SEED = 20
"""Of the tokens of prompts that go on from one another."""
Job = Callable[[list[int], int, bool], dict[str, Any]]
"""Prompt, new tokens, and whether the prompt goes on from the one before it, to the answer without memory."""


def moments_of(start: float, moments: list[float], computed: int) -> dict[str, Any]:
    """Seconds until the first token, for so many of the prompt's, and between one and the next."""
    steps = [after - before for before, after in itertools.pairwise(moments)]
    return {"prefill_s": moments[0] - start, "computed": computed, "steps_s": steps}


def ours(folder: Path, threads: int, context: int) -> Job:
    """Embeddings, decoder graph, choice of the token, by pieces of the prompt as the runner takes them.

    Opened as `run` opens a finished bundle: no torch in the process, what is made of the weights is kept, and what
    the engine has for decoding decodes.
    """
    from r1v_export.cpus import has_bfloat16_products
    from r1v_export.runner.paired_engine import PairedEngine
    from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine

    root, sizes = folder.parents[1], sizes_of(folder)
    own = OnnxRuntimeEngine(folder, root, sizes, "cpu", threads, keep=True, positions=context)
    if (part := folder / "decoder" / "openvino").is_dir() and has_bfloat16_products():
        from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

        open_decoder = partial(OpenVinoEngine, part, root, sizes, threads)
        return answers_of(PairedEngine(own, "decoder by openvino", open_decoder=open_decoder))
    own.begin_decoder(alone=True)
    return answers_of(own)


def openvino(folder: Path, threads: int, context: int) -> Job:
    """Our target `openvino`, which gives OpenVINO the same pieces."""
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    return answers_of(OpenVinoEngine(folder, folder.parents[1], sizes_of(folder), threads))


def sizes_of(folder: Path) -> Sizes:
    from r1v_export.contract import Sizes

    return Sizes(**json.loads((folder / SIZES).read_text(encoding="utf-8")))


def answers_of(engine: Engine) -> Job:
    """Tokens of one of our engines."""
    import threading

    import numpy as np

    from r1v_export.contract import PREFILL_CHUNK
    from r1v_export.runner.kv_cache import KVCache, embed_chosen, open_cache, plan_capacity, prefill

    assert PREFILL_CHUNK == CHUNK

    kept: list[tuple[KVCache, int]] = []

    def run(prompt: list[int], new_tokens: int, goes_on: bool) -> dict[str, Any]:
        start, moments = time.perf_counter(), list[float]()
        capacity = plan_capacity(len(prompt) + new_tokens, len(prompt) + new_tokens)
        cache, had = kept.pop() if goes_on and kept and kept[0][1] < len(prompt) else (None, 0)
        kept.clear()
        if cache is None:
            cache = open_cache(engine, 1, capacity, one_sequence=True)
        else:
            cache.truncate(0, had)
            cache.resize(1, capacity)
        logits_1V = prefill(cache, [embed_chosen(engine, np.array([prompt[had:]]))[0]], threading.Event())
        for step in range(new_tokens):
            token = int(logits_1V[0].argmax())
            moments.append(time.perf_counter())
            if step + 1 < new_tokens:
                logits_1V = cache.append(embed_chosen(engine, np.array([[token]])), np.array([1]))
        kept.extend([(cache, len(prompt))] if goes_on else [])
        cache_bytes = capacity * engine.cache_limits().slot_bytes
        return moments_of(start, moments, len(prompt) - had) | {"cache_bytes": cache_bytes}

    return run


def genai(folder: Path, threads: int, context: int) -> Job:
    """onnxruntime-genai's generator, its prompt given in the same pieces."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    kept: list[tuple[Any, int]] = []

    def run(prompt: list[int], new_tokens: int, goes_on: bool) -> dict[str, Any]:
        start, moments = time.perf_counter(), list[float]()
        generator, had = kept.pop() if goes_on and kept and kept[0][1] < len(prompt) else (None, 0)
        kept.clear()
        if generator is None:
            params = og.GeneratorParams(model)
            # Its cache has all of its slots from the start.
            most = context if goes_on else len(prompt) + new_tokens
            params.set_search_options(max_length=most, do_sample=False, past_present_share_buffer=True)
            generator = og.Generator(model, params)
        else:
            generator.rewind_to(had)
        for begin in range(had, len(prompt), CHUNK):
            generator.append_tokens(np.array([prompt[begin : begin + CHUNK]], dtype=np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            moments.append(time.perf_counter())
        kept.extend([(generator, len(prompt))] if goes_on else [])
        return moments_of(start, moments, len(prompt) - had) | {"cache_bytes": None}

    return run


def llama(model: Path, threads: int, context: int) -> Job:
    """llama.cpp's server, by its own clock: it says how long the prompt and the tokens after it took."""
    import urllib.request

    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(model), context, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)

    kept: list[int] = []

    def run(prompt: list[int], new_tokens: int, goes_on: bool) -> dict[str, Any]:
        had = kept.pop() if goes_on and kept and kept[0] < len(prompt) else 0
        kept[:] = [len(prompt)] if goes_on else []
        body = {
            "prompt": prompt,
            "n_predict": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": had > 0,
        }
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as response:
            timings = json.load(response)["timings"]
        # Its first token comes out of the prompt's last run, so that the others took the time of all but one.
        computed, prefill_s = timings["prompt_n"], timings["prompt_ms"] / 1e3
        assert (computed, timings["predicted_n"]) == (len(prompt) - had, new_tokens), timings
        step_s = timings["predicted_ms"] / 1e3 / max(1, new_tokens - 1)
        return {"prefill_s": prefill_s, "computed": computed, "steps_s": [step_s], "cache_bytes": None}

    return run


def resident_bytes(field: str, pid: int | str = "self") -> int:
    """`VmRSS` (now) or `VmHWM` (at its peak) of a process."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has ended")


def main(kind: str, model: Path, threads: int, context: int) -> None:
    job = {"ours": ours, "openvino": openvino, "genai": genai, "llama": llama}[kind](model, threads, context)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        # The same tokens for every engine; Python's generator, as llama.cpp's environment has no numpy.
        import random

        ids = range(asked["vocabulary"] // 2)  # added tokens are at the end
        goes_on = asked.get("goes_on", False)
        prompt = random.Random(SEED if goes_on else asked["tokens"]).choices(ids, k=asked["tokens"])
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        loaded = resident_bytes("VmRSS")
        answer = job(prompt, asked["new_tokens"], goes_on)
        memory = {"loaded_bytes": loaded, "peak_bytes": resident_bytes("VmHWM")}
        print(json.dumps(answer | memory), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).absolute(), int(sys.argv[3]), int(sys.argv[4]))
