"""Runs in vLLM's own environment: loads one checkpoint and answers a job's questions greedily. See vllm_oracle.py.

    ENVIRONMENT/bin/python vllm_reader.py JOB.json ANSWERS.json

JOB: {"model", "dtype", "max_tokens", "kv_cache_dtype", "questions": [{"prompt", "image"}]}. ANSWERS: vLLM's version,
the prompt ids and tokens of every question, and how many linears got which quantization method; or the error.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "VLLM_DISABLED_KERNELS": "CPUFp8PerTensorScaledMMLinearKernel",
}
"""The disabled kernel is that of processors with AMX: it refuses a bfloat16 bias and leaves inputs unrounded."""


PARTS = {"vision_model": "vision", "mlp1": "projector"}


def methods(model: Any) -> dict[str, int]:
    """Linears by the class that computes them: `ModelOptFp8LinearMethod`, `UnquantizedLinearMethod` ..."""
    found: collections.Counter[str] = collections.Counter()
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if method is not None and hasattr(module, "weight_loader"):
            scheme = getattr(module, "scheme", None)
            part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "language")
            found[f"{part}: {type(scheme or method).__name__}"] += 1
    return dict(sorted(found.items()))


def answer(job: dict[str, Any]) -> dict[str, Any]:
    import vllm
    from PIL import Image

    llm = vllm.LLM(
        model=job["model"],
        dtype=job["dtype"],
        trust_remote_code=True,
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=512,
        max_num_seqs=16,
        skip_mm_profiling=True,
        kv_cache_dtype=job.get("kv_cache_dtype", "auto"),
        limit_mm_per_prompt={"image": 1},
    )
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])
    prompts = [
        {"prompt": question["prompt"], "multi_modal_data": {"image": Image.open(question["image"]).convert("RGB")}}
        for question in job["questions"]
    ]
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return {
        "vllm": vllm.__version__,
        "methods": llm.apply_model(methods)[0],
        "answers": [
            {"prompt_ids": list(output.prompt_token_ids), "tokens": list(output.outputs[0].token_ids)}
            for output in outputs
        ],
    }


def main() -> None:
    job, out = (Path(argument) for argument in sys.argv[1:])
    try:
        answers = answer(json.loads(job.read_text(encoding="utf-8")))
    except Exception as error:  # the reader's own error is a result
        traceback.print_exc()
        answers = {"error": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
