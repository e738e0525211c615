"""What a unified checkpoint is run with: its block of the build file."""

from __future__ import annotations

from typing import Literal

from r1v_export.strict import StrictModel


class HfUnifiedConfig(StrictModel):
    """How TensorRT-LLM's LLM API runs the checkpoint. The checkpoint is the same for any number of GPUs."""

    tp: Literal[1, 2, 4, 8] = 1
    """GPUs that share each layer in `run --engine llm-api`."""
