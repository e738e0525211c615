"""What a TensorRT-LLM build is made for: its block of the build file."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from r1v_export.strict import StrictModel


class TensorRTLLMConfig(StrictModel):
    """GPUs that share the model, and the sizes that an engine is built for. Sizes beyond the model's positions are cut
    to them."""

    tp: Literal[1, 2, 4, 8] = 1
    """GPUs that share each layer."""
    pp: PositiveInt = 1
    """Groups of such GPUs that share the layers."""
    max_batch_size: PositiveInt = 4
    """Requests that are computed together."""
    images_per_request: PositiveInt = 1
    """Images of a request, each cut into as many tiles as the model allows."""
    max_input_len: PositiveInt = 8192
    """Tokens of a prompt, those of its images included."""
    max_seq_len: PositiveInt = 32768
    """Tokens of a prompt and its answer."""
    max_num_tokens: PositiveInt = 8192
    """Tokens of a step, over all requests."""
    kernel_layout: Literal[80, 90] = 80
    """Which GPUs weights with zero points (W4A16_GPTQ) are laid out for: 90 is Hopper, 80 all others."""
