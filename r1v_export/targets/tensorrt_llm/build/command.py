"""The command that builds an engine from a checkpoint, and where it can run.

Flags follow from the build's config and the checkpoint's own: nothing is left to a default that depends on the
library's version.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.targets.tensorrt_llm.checkpoint.reader import Config
from r1v_export.targets.tensorrt_llm.config import TensorRTLLMConfig

PROGRAM = "trtllm-build"
IMAGE = "TENSORRT_LLM_IMAGE"
"""Variable of the shell that names NVIDIA's TensorRT-LLM release container."""

TEXT_TOKENS = 64
"""Tokens of a prompt that are no image's, at least: template and a short question."""


@dataclass(frozen=True)
class EngineSizes:
    """What an engine is built for; tokens and requests."""

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    max_multimodal_len: int
    """Rows of the prompt embedding table, over all requests of a batch."""


def engine_sizes(options: TensorRTLLMConfig, spec: ModelSpec) -> EngineSizes:
    """The sizes of a build's config, cut to the model's positions.

    Raises:
        UsageError: a request's images do not fit into its prompt.
    """
    positions = spec.language.max_position_embeddings
    max_seq_len = min(options.max_seq_len, positions)
    max_input_len = min(options.max_input_len, max_seq_len - 1)
    visual = options.images_per_request * visual_tokens(spec)
    if visual + TEXT_TOKENS > max_input_len:
        raise UsageError(
            "The images of a request do not fit into its prompt.",
            where="tensorrt_llm.max_input_len",
            expected=f"at least {visual + TEXT_TOKENS} tokens: {Count(options.images_per_request, 'image')} of up to "
            f"{visual_tokens(spec)}, and {TEXT_TOKENS} of text",
            found=max_input_len,
            fix="raise max_input_len, or lower images_per_request",
        )
    return EngineSizes(
        options.max_batch_size, max_input_len, max_seq_len, options.max_num_tokens, options.max_batch_size * visual
    )


def visual_tokens(spec: ModelSpec) -> int:
    """Tokens of an image cut into as many tiles as the model allows, its thumbnail included: 13 * 256 for R1V."""
    return spec.tiling.max_tiles_per_image * spec.tokens_per_tile


def build_arguments(checkpoint: Path, out: Path, config: Config, sizes: EngineSizes, workers: int) -> list[str]:
    """The words of the command.

    Args:
        checkpoint: the folder with config.json and the rank files.
        out: where the engine goes.
        config: the checkpoint's.
        workers: ranks that are built at a time, a GPU each.
    """
    flags = {
        "checkpoint_dir": checkpoint,
        "output_dir": out,
        "workers": workers,
        "max_batch_size": sizes.max_batch_size,
        "max_input_len": sizes.max_input_len,
        "max_seq_len": sizes.max_seq_len,
        "max_num_tokens": sizes.max_num_tokens,
        "max_beam_width": 1,
        "max_multimodal_len": sizes.max_multimodal_len,
        "kv_cache_type": "paged",
        "remove_input_padding": "enable",
        "gpt_attention_plugin": config.dtype,
        **_attention(config),
        # TensorRT's own FP8 GEMMs are the faster ones; everything else runs in the plugin, in the model's dtype.
        "gemm_plugin": "disable" if config.quantization.quant_algo == "FP8" else config.dtype,
        "logits_dtype": "float32",
        "profiling_verbosity": "layer_names_only",
        "output_timing_cache": out / "timing.cache",
        "log_level": "info",
    }
    return [PROGRAM, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


def _attention(config: Config) -> dict[str, str]:
    """Fused attention over the prompt. Reading a paged cache in it is what makes KV reuse and chunked prompts possible.

    With an FP8 cache that takes FP8 attention, which takes FP8 projections; there is no such kernel for an INT8 cache,
    and none at all for float32.
    """
    return {
        "context_fmha": "disable" if config.dtype == "float32" else "enable",
        "use_paged_context_fmha": "enable" if reuses_blocks(config) else "disable",
        "use_fp8_context_fmha": "enable" if _fp8_attention(config) else "disable",
    }


def reuses_blocks(config: Config) -> bool:
    """Whether an engine can use blocks of its cache again for a prompt that begins alike: its attention over the prompt
    reads the paged cache."""
    cached_as_computed = config.quantization.kv_cache_quant_algo is None or _fp8_attention(config)
    return config.dtype != "float32" and cached_as_computed


def _fp8_attention(config: Config) -> bool:
    return config.quantization.kv_cache_quant_algo == "FP8" and config.quantization.quant_algo == "FP8"


def container_recipe(bundle: Path, out: Path, arguments: list[str]) -> str:
    """Shell lines that run the command in NVIDIA's container, on a machine with GPUs and the bundle's folder."""
    mapped = [
        word.replace(str(out), "/engine").replace(str(bundle), "/bundle") if word.startswith("/") else word
        for word in arguments
    ]
    docker = [
        "docker run --rm --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864",
        f"  -v {shlex.quote(str(bundle))}:/bundle:ro -v {shlex.quote(str(out))}:/engine",
        f'  "${IMAGE}"',
        f"  {shlex.join(mapped)}",
    ]
    return f"# {IMAGE}: NVIDIA's TensorRT-LLM release container, version 1.0 to 1.2\n" + " \\\n".join(docker)
