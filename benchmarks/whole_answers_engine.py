"""One system of `whole_answers.py`, in a process of its own: answers jobs from stdin, a line of JSON each.

    python whole_answers_engine.py KIND MODEL THREADS [OPTION]

KIND: `ours` (MODEL is a bundle, OPTION its target and what encodes images), `transformers` (a checkpoint in the layout
`internvl`, a dtype), `vllm` (likewise), `llama` (a folder with model.gguf and mmproj.gguf) or `genai` (a folder of
OpenVINO models). A job is {"image", "question", "before", "after", "new_tokens"}: an image's file, a question, and the
prompt's text before and after the image. Its answer: {"first_s", "last_s", "tokens", "prompt_tokens", "loaded_bytes",
"peak_bytes"}: seconds from the question, with the file not read yet, to the first and the last token; memory before the
job and at its peak. Every answer has as many tokens as are asked for, the most likely ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = 4096
"""Tokens of a prompt and its answer, at most, where a system takes a limit: 13 tiles are 3,328."""
Job = dict[str, Any]
Answer = Callable[[Job], dict[str, Any]]


def moments_of(began: float, moments: list[float], prompt_tokens: int) -> dict[str, Any]:
    """Seconds until the first and the last token."""
    seconds = {"first_s": moments[0] - began, "last_s": moments[-1] - began}
    return seconds | {"tokens": len(moments), "prompt_tokens": prompt_tokens}


def ours(bundle: Path, threads: int, targets: str) -> Answer:
    """What `open_runner` answers with an opened bundle, without speculation: it guesses what random weights repeat.

    Args:
        targets: whose engine it is, what encodes images, and what decodes.
    """
    from r1v_export.cpus import use_threads
    from r1v_export.generation import Sampling
    from r1v_export.processing.load_image import load_image
    from r1v_export.runner.open_runner import open_runner
    from r1v_export.runner.prompt_encoder import Request

    use_threads(threads)
    target, images, decoder = targets.split()
    runner = open_runner(bundle, target, vision_target=images, decoder_target=decoder)

    def run(job: Job) -> dict[str, Any]:
        began, moments, answer = time.perf_counter(), [], None
        request = Request.ask(job["question"], load_image(job["image"], runner.image_policy))
        for event in runner.generate(
            [request], Sampling(temperature=0.0, max_new_tokens=job["new_tokens"], ignore_eos=True)
        ):
            if event.token_id is not None:
                moments.append(time.perf_counter())
            answer = event.answer or answer
        assert answer is not None
        return moments_of(began, moments, answer.prompt_tokens)

    return run


def transformers(checkpoint: Path, threads: int, dtype: str) -> Answer:
    """transformers' own classes: image processor, tokenizer and `generate`."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    processor = GotOcr2ImageProcessorPil.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()

    class Clock:
        """A streamer: it is given the prompt first, then each token."""

        def __init__(self) -> None:
            self.moments: list[float] = []

        def put(self, _: torch.Tensor) -> None:
            self.moments.append(time.perf_counter())

        def end(self) -> None:
            pass

    def run(job: Job) -> dict[str, Any]:
        began, clock, new = time.perf_counter(), Clock(), job["new_tokens"]
        with Image.open(job["image"]) as image:
            tiles = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        shown = "<img>" + "<IMG_CONTEXT>" * (len(tiles) * model.config.image_seq_length) + "</img>"
        prompt = tokenizer(job["before"] + shown + job["after"], return_tensors="pt")
        limits = {"min_new_tokens": new, "max_new_tokens": new, "do_sample": False, "repetition_penalty": 1.0}
        with torch.inference_mode():
            model.generate(**prompt, pixel_values=tiles.to(model.dtype), streamer=clock, **limits)
        return moments_of(began, clock.moments[1:], prompt["input_ids"].shape[1])

    return run


def llama(folder: Path, threads: int, _: str) -> Answer:
    """llama.cpp's HTTP server, its answer streamed."""
    import base64
    import urllib.request

    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    parameters.n_ctx, parameters.n_parallel = CONTEXT, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    with urllib.request.urlopen(server.listening_address + "/props") as response:
        marker = json.load(response)["media_marker"]

    def run(job: Job) -> dict[str, Any]:
        began, moments, last = time.perf_counter(), [], {}
        image = base64.b64encode(Path(job["image"]).read_bytes()).decode()
        prompt = {"prompt_string": job["before"] + marker + job["after"], "multimodal_data": [image]}
        body = {"prompt": prompt, "n_predict": job["new_tokens"], "temperature": 0, "stream": True}
        body |= {"ignore_eos": True, "cache_prompt": False, "return_tokens": True}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    last = json.loads(line.removeprefix(b"data: "))
                    moments += [time.perf_counter()] * len(last.get("tokens") or ())
        return moments_of(began, moments, last["tokens_evaluated"])

    return run


def genai(folder: Path, threads: int, _: str) -> Answer:
    """OpenVINO GenAI's VLM pipeline, as it is by default, without its cache of earlier prompts."""
    import numpy as np
    import openvino
    import openvino_genai
    from PIL import Image

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching, scheduler.cache_size = False, 1
    options = {"scheduler_config": scheduler, "INFERENCE_NUM_THREADS": threads}
    pipeline = openvino_genai.VLMPipeline(folder, "CPU", **options)

    class Clock(openvino_genai.StreamerBase):
        """Notes when tokens come; text pieces come three tokens late."""

        def __init__(self) -> None:
            super().__init__()
            self.moments: list[float] = []

        def write(self, tokens: int | list[int]) -> openvino_genai.StreamingStatus:
            self.moments += [time.perf_counter()] * (len(tokens) if isinstance(tokens, list) else 1)
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    def run(job: Job) -> dict[str, Any]:
        began, clock = time.perf_counter(), Clock()
        with Image.open(job["image"]) as image:
            pixels = openvino.Tensor(np.asarray(image.convert("RGB"))[None])
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template = job["new_tokens"], True, False
        prompt = job["before"] + "<image>" + job["after"]
        found = pipeline.generate(prompt, images=[pixels], generation_config=config, streamer=clock)
        return moments_of(began, clock.moments, found.perf_metrics.get_num_input_tokens())

    return run


def vllm(checkpoint: Path, threads: int, dtype: str) -> Answer:
    """vLLM's engine in this process, without its cache of earlier prompts, its threads not bound to cores."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(checkpoint.parent / "vllm-cache"),
    }
    import vllm as library
    from PIL import Image

    options = {"limit_mm_per_prompt": {"image": 1}, "skip_mm_profiling": True, "enable_prefix_caching": False}
    engine = library.LLM(str(checkpoint), dtype=dtype, max_model_len=CONTEXT, **options).llm_engine

    def run(job: Job) -> dict[str, Any]:
        began, moments, prompt_tokens = time.perf_counter(), [], 0
        with Image.open(job["image"]) as image:
            shown = {"image": image.convert("RGB")}
        prompt = {"prompt": job["before"] + "<IMG_CONTEXT>" + job["after"], "multi_modal_data": shown}
        sampling = library.SamplingParams(temperature=0.0, max_tokens=job["new_tokens"], ignore_eos=True)
        engine.add_request(job["image"], prompt, sampling)
        while engine.has_unfinished_requests():
            for answer in engine.step():
                prompt_tokens = len(answer.prompt_token_ids)
                moments += [time.perf_counter()] * (len(answer.outputs[0].token_ids) - len(moments))
        return moments_of(began, moments, prompt_tokens)

    return run


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (at its peak) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(kind: str, model: Path, threads: int, option: str) -> None:
    began = time.perf_counter()
    kinds = {"ours": ours, "transformers": transformers, "vllm": vllm, "llama": llama, "genai": genai}
    answer = kinds[kind](model, threads, option)
    print(json.dumps({"open_s": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        loaded = resident_bytes("VmRSS")
        found = answer(json.loads(line)) | {"loaded_bytes": loaded, "peak_bytes": resident_bytes("VmHWM")}
        print(json.dumps(found), flush=True)
    os._exit(0)  # a server's threads do not end by themselves


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).absolute(), int(sys.argv[3]), "".join(sys.argv[4:]))
