"""Where the class of each target is: of those in this package, and of those that other packages bring.

Imports nothing heavy: the help of `--target` lists the names.

A package brings a target by an entry point of the group `r1v_export.targets`: the target's name, and "module:class" of
a `Target`.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points

GROUP = "r1v_export.targets"
DEFAULT = "onnxruntime"
"""The target of a build that names none."""

_PACKAGE = "r1v_export.targets"
BUILT_IN = tuple(
    EntryPoint(name, f"{_PACKAGE}.{value}", GROUP)
    for name, value in (
        ("onnxruntime", "onnxruntime.target:OnnxRuntimeTarget"),
        ("tensorrt", "tensorrt.target:TensorRTTarget"),
        ("tensorrt-rtx", "tensorrt.target:TensorRTRTXTarget"),
        ("tensorrt-llm", "tensorrt_llm.target:TensorRTLLMTarget"),
        ("hf-unified", "hf_unified.target:HfUnifiedTarget"),
        ("compressed-tensors", "compressed_tensors.target:CompressedTensorsTarget"),
        ("gguf", "gguf.target:GgufTarget"),
        ("openvino", "openvino.target:OpenVinoTarget"),
    )
)
"""Written here and not in pyproject.toml, so that they are there in a source tree that is not installed."""

DESCRIBED = ("tensorrt", "tensorrt-rtx")
"""Those of them whose engines `r1v-export inspect --target` shows."""


@functools.cache
def points() -> tuple[EntryPoint, ...]:
    """Every target's entry point; a package that is installed later is found by the next process."""
    others = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return (*BUILT_IN, *others)


def names() -> tuple[str, ...]:
    """Every target, in order of preference: `run` and `check` take the first that a bundle has."""
    return tuple(dict.fromkeys(point.name for point in points()))
