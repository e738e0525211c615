"""Whether PyTorch has the GPU that `--device cuda` asks for. It is imported when that is asked."""

from __future__ import annotations

from r1v_export.errors import CapabilityError


def require_device(device: str) -> None:
    """Check that PyTorch can compute on a device: "cpu" or "cuda".

    Raises:
        CapabilityError: it sees no CUDA GPU.
    """
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise CapabilityError(
            "There is no CUDA GPU.",
            where=f"--device {device}",
            expected="a CUDA GPU, and a PyTorch that uses it",
            found=no_gpu(),
            fix="use --device cpu",
        )


def no_gpu() -> str:
    """Why there is none."""
    import torch

    return "none" if torch.version.cuda else "none (this torch is built for the CPU)"
