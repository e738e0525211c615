"""One engine of `long_contexts.py`, in a process of its own: answers jobs from stdin, a line of JSON each.

    python long_contexts_engine.py KIND MODEL THREADS CONTEXT

KIND: `ours` or `openvino` (MODEL is the folder of an engine of ours, for ONNX Runtime or OpenVINO, two below its
bundle, with `sizes.json` in it), `genai` (a folder of its builder) or `llama` (a GGUF file). A job is {"tokens",
"new_tokens", "vocabulary"}, its answer {"prefill_s", "steps_s", "peak_bytes", "loaded_bytes", "cache_bytes"}: seconds
until the first token and of each one after it, memory at its peak during the job and before it, and the cache's share
of it as its shapes say, where they are known.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1v_export.contract import Engine, Sizes

CHUNK = 512
"""Prompt tokens of a run: `kv_cache.PREFILL_CHUNK`, and llama.cpp's default."""
SIZES = "sizes.json"
"""In our engine's folder: a `contract.Sizes`, which a bundle's documents say and these builds have none of."""
Job = Callable[[list[int], int], dict[str, Any]]


def moments_of(start: float, moments: list[float]) -> dict[str, Any]:
    """Seconds until the first token, and between one and the next."""
    steps = [after - before for before, after in itertools.pairwise(moments)]
    return {"prefill_s": moments[0] - start, "steps_s": steps}


def ours(folder: Path, threads: int) -> Job:
    """Embeddings, decoder graph, choice of the token, by pieces of the prompt as the runner takes them.

    Opened as `serve` opens a finished bundle: no torch in the process, what is made of the weights is kept, and prompts
    are computed by what the engine has for them.
    """
    from r1v_export.cpus import has_bfloat16_products
    from r1v_export.runner.prompted_engine import PromptedEngine
    from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine

    engine: Engine = OnnxRuntimeEngine(folder, folder.parents[1], sizes_of(folder), "cpu", threads, keep=True)
    if (part := folder / "prompts" / "openvino").is_dir() and has_bfloat16_products():
        from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

        prompts = OpenVinoEngine(part, folder.parents[1], sizes_of(folder), threads).prompts()
        engine = PromptedEngine(engine, lambda: prompts, "prompts by openvino")
    return answers_of(engine)


def openvino(folder: Path, threads: int) -> Job:
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

    from r1v_export.runner.kv_cache import PREFILL_CHUNK, KVCache, embed_chosen, plan_capacity, prefill

    assert PREFILL_CHUNK == CHUNK

    def run(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        start = time.perf_counter()
        capacity = plan_capacity(len(prompt) + new_tokens, len(prompt) + new_tokens)
        cache, moments = KVCache(engine.decoder(1, capacity)), []
        logits_1V = prefill(cache, [embed_chosen(engine, np.array([prompt]))[0]], threading.Event())
        for step in range(new_tokens):
            token = int(logits_1V[0].argmax())
            moments.append(time.perf_counter())
            if step + 1 < new_tokens:
                logits_1V = cache.append(embed_chosen(engine, np.array([[token]])), np.array([1]))
        return moments_of(start, moments) | {"cache_bytes": capacity * engine.cache_limits().slot_bytes}

    return run


def genai(folder: Path, threads: int) -> Job:
    """onnxruntime-genai's generator, its prompt given in the same pieces."""
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def run(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        start = time.perf_counter()
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + new_tokens, do_sample=False, past_present_share_buffer=True)
        generator, moments = og.Generator(model, params), []
        for begin in range(0, len(prompt), CHUNK):
            generator.append_tokens(np.array([prompt[begin : begin + CHUNK]], dtype=np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            moments.append(time.perf_counter())
        return moments_of(start, moments) | {"cache_bytes": None}

    return run


def llama(model: Path, threads: int, context: int) -> Job:
    """llama.cpp's server, by its own clock: it says how long the prompt and the tokens after it took."""
    import urllib.request

    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = str(model), context, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)

    def run(prompt: list[int], new_tokens: int) -> dict[str, Any]:
        body = {"prompt": prompt, "n_predict": new_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as response:
            timings = json.load(response)["timings"]
        # Its first token comes out of the prompt's last run, so that the others took the time of all but one.
        assert (timings["prompt_n"], timings["predicted_n"]) == (len(prompt), new_tokens), timings
        step_s = timings["predicted_ms"] / 1e3 / max(1, new_tokens - 1)
        return {"prefill_s": timings["prompt_ms"] / 1e3, "steps_s": [step_s], "cache_bytes": None}

    return run


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (at its peak) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(kind: str, model: Path, threads: int, context: int) -> None:
    kinds = {"ours": ours, "openvino": openvino, "genai": genai}
    job = llama(model, threads, context) if kind == "llama" else kinds[kind](model, threads)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        # The same tokens for every engine; Python's generator, as llama.cpp's environment has no numpy.
        import random

        ids = range(asked["vocabulary"] // 2)  # added tokens are at the end
        prompt = random.Random(asked["tokens"]).choices(ids, k=asked["tokens"])
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        loaded = resident_bytes("VmRSS")
        answer = job(prompt, asked["new_tokens"])
        memory = {"loaded_bytes": loaded, "peak_bytes": resident_bytes("VmHWM")}
        print(json.dumps(answer | memory), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).absolute(), int(sys.argv[3]), int(sys.argv[4]))
