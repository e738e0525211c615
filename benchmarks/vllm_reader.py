"""Runs in vLLM's own environment: loads one checkpoint and answers a job's questions greedily. See vllm_oracle.py.

    ENVIRONMENT/bin/python vllm_reader.py JOB.json ANSWERS.json

JOB: {"model", "dtype", "max_tokens", "kv_cache_dtype", "kernels", "questions": [{"prompt", "image"}]}. ANSWERS: vLLM's
version, whether it loaded the model, how many linears got which quantization method, the prompt ids and tokens of
every question; or its error.
"""

from __future__ import annotations

import collections
import importlib.metadata
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
}


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


def hide_amx() -> None:
    """Let vLLM and torch take their kernels for processors without AMX.

    vLLM's for AMX do not compute what the checkpoint says (FP8 inputs stay 16-bit, INT8 inputs get scales of their
    own), and torch's FP8 product by oneDNN, which it takes on such processors, is hundreds of times slower than its
    own.
    """
    import torch

    torch.cpu._is_amx_tile_supported = lambda: False
    product = torch._scaled_mm

    def without_onednn(*arguments: Any, **named: Any) -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return product(*arguments, **named)

    torch._scaled_mm = without_onednn


def mend_fp8() -> None:
    """Supply what vLLM's CPU build lacks for FP8 with static inputs, so that the rest of vLLM computes with it.

    The CPU build has no rounding to FP8 by a given scale (it rounds weights again, by the scale that they have), and
    torch's product per channel, which it takes, expects a scale for each row of its inputs.
    """
    import torch
    from vllm import _custom_ops
    from vllm.model_executor.kernels.linear.scaled_mm import pytorch

    def rounded(values: Any, scale: Any = None, *arguments: Any, **named: Any) -> Any:
        assert scale is not None
        assert scale.numel() == 1
        largest = torch.finfo(torch.float8_e4m3fn).max
        return (values.float() / scale).clamp(-largest, largest).to(torch.float8_e4m3fn), scale

    kernel = pytorch.ChannelWiseTorchFP8ScaledMMLinearKernel
    product = kernel.apply_scaled_mm

    def with_a_scale_per_row(self: Any, *, A: Any, As: Any, **named: Any) -> Any:
        scales = As.reshape(1, 1).expand(A.shape[0], 1) if As.numel() == 1 else As
        return product(self, A=A, As=scales, **named)

    _custom_ops.scaled_fp8_quant = rounded
    kernel.apply_scaled_mm = with_a_scale_per_row


def opened(job: dict[str, Any]) -> Any:
    """The model in vLLM."""
    import vllm

    return vllm.LLM(
        model=job["model"],
        dtype=job["dtype"],
        trust_remote_code=True,
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=512,
        max_num_seqs=16,
        skip_mm_profiling=True,
        kv_cache_dtype=job["kv_cache_dtype"],
        limit_mm_per_prompt={"image": 1},
    )


def answers_of(llm: Any, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Greedy answers: prompt ids and tokens."""
    import vllm
    from PIL import Image

    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])
    prompts = [
        {"prompt": question["prompt"], "multi_modal_data": {"image": Image.open(question["image"]).convert("RGB")}}
        for question in job["questions"]
    ]
    return [
        {"prompt_ids": list(output.prompt_token_ids), "tokens": list(output.outputs[0].token_ids)}
        for output in llm.generate(prompts, sampling, use_tqdm=False)
    ]


def main() -> None:
    job_file, out = (Path(argument) for argument in sys.argv[1:])
    job = json.loads(job_file.read_text(encoding="utf-8"))
    found: dict[str, Any] = {"version": importlib.metadata.version("vllm-cpu"), "loads": False}
    out.write_text(json.dumps(found), encoding="utf-8")
    try:
        if "AMX" not in job["kernels"]:
            hide_amx()
        if "mended" in job["kernels"]:
            mend_fp8()
        llm = opened(job)
        found |= {"loads": True, "methods": llm.apply_model(methods)[0]}
        out.write_text(json.dumps(found), encoding="utf-8")
        found["answers"] = answers_of(llm, job)
    except Exception as error:  # the reader's own error is a result
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
