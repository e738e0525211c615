"""Which GPU holds what: tensor parallel inside a layer, pipeline parallel over layers."""

from __future__ import annotations

from collections import abc

from r1v_export.count import Count
from r1v_export.errors import UsageError
from r1v_export.model_spec import LanguageSpec
from r1v_export.parallel import Parallel
from r1v_export.targets.tensorrt_llm.checkpoint.formats import FOUR_BITS, QuantFormat

CUT_ALONG_INPUTS = ("attention.dense", "mlp.proj")
"""Linears whose input features are shared out, their products summed over GPUs; of all others it is the outputs."""

KERNEL_COLUMNS = {"W4A16_AWQ": 64, "W4A16_GPTQ": 64, "W4A8_AWQ": 128}
"""Both feature counts of a 4-bit linear are multiples of this (or of the group) for every GPU: TensorRT-LLM would have
to pad them, and does not for quantized checkpoints."""

Mapping = Parallel
"""TensorRT-LLM's name for it."""


def pad_vocabulary(vocab_size: int, tp: int) -> int:
    """Rows of the language-model head: the next multiple of `tp`."""
    return -(-vocab_size // tp) * tp


def module_features(spec: LanguageSpec) -> dict[str, tuple[int, int]]:
    """(out features, in features) of each of TensorRT-LLM's linears of a layer, over all GPUs."""
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    return {
        "attention.qkv": (query + 2 * key_value, hidden),
        "attention.dense": (hidden, query),
        "mlp.fc": (intermediate, hidden),
        "mlp.gate": (intermediate, hidden),
        "mlp.proj": (hidden, intermediate),
    }


def check_mapping(
    spec: LanguageSpec, quant_formats: abc.Mapping[tuple[int, str], QuantFormat | None], parallel: Mapping
) -> None:
    """Check that a model can be split over the GPUs of a mapping.

    Raises:
        UsageError: heads, features or quantization groups cannot be shared out so, or pipeline stages differ in their
            formats.
    """
    counts = {
        "attention heads": spec.num_heads,
        "key-value heads": spec.num_kv_heads,
        "intermediate features": spec.intermediate_size,
    }
    for what, count in counts.items():
        if count % parallel.tp:
            fitting = [tp for tp in (1, 2, 4, 8) if all(number % tp == 0 for number in counts.values())]
            raise UsageError(
                f"{parallel.tp} GPUs cannot share this model's {what} evenly.",
                where=f"--tp {parallel.tp}, or tp of the target tensorrt-llm",
                expected=f"a divisor of {count}: {' or '.join(map(str, fitting))}",
                found=parallel.tp,
                fix=f"--tp {fitting[-1]}",
            )
    if parallel.pp > spec.num_layers:
        raise UsageError(
            "There are more pipeline stages than layers.",
            where=f"--pp {parallel.pp}, or pp of the target tensorrt-llm",
            expected=f"at most {spec.num_layers}",
            found=parallel.pp,
            fix=f"--pp {spec.num_layers}, or fewer",
        )
    features = module_features(spec)
    grouped = {
        (module, quant_format)
        for (_, module), quant_format in quant_formats.items()
        if quant_format and quant_format.algorithm in FOUR_BITS
    }
    for check in (_check_groups, _check_kernels):
        for module in features:
            for quant_format in (quant_format for name, quant_format in grouped if name == module):
                check(module, features[module], quant_format, parallel.tp)
    _check_stages(spec, quant_formats, parallel)


def _check_groups(module: str, features: tuple[int, int], quant_format: QuantFormat, tp: int) -> None:
    assert quant_format.group_size is not None
    own = features[1] // tp if module in CUT_ALONG_INPUTS else features[1]
    if own % quant_format.group_size:
        raise UsageError(
            "A quantization group would be split across two GPUs.",
            where=f"{module} with tp {tp}",
            expected=f"input features of each GPU in whole groups of {quant_format.group_size}",
            found=f"{own} of {Count(features[1], 'input feature')} on each",
            fix="a smaller tp, or a smaller group_size in the recipe",
        )


def _check_kernels(module: str, features: tuple[int, int], quant_format: QuantFormat, tp: int) -> None:
    assert quant_format.group_size is not None
    multiple = max(KERNEL_COLUMNS[quant_format.algorithm], quant_format.group_size) * tp
    if any(count % multiple for count in features):
        raise UsageError(
            "TensorRT-LLM's 4-bit kernels need padding, which it does not support for quantized checkpoints.",
            where=f"{module} with tp {tp}",
            expected=f"multiples of {multiple} output and input features",
            found=f"{features[0]} and {features[1]}",
            fix="a smaller tp, or a smaller group_size in the recipe",
        )


def _check_stages(
    spec: LanguageSpec, quant_formats: abc.Mapping[tuple[int, str], QuantFormat | None], parallel: Mapping
) -> None:
    """Each stage numbers its layers from 0, so the entry for layer 0 in config.json applies to each stage's first."""
    for stage in range(1, parallel.pp):
        first, layers = parallel.layers(0, spec.num_layers), parallel.layers(stage, spec.num_layers)
        for ours, theirs in zip(layers, first, strict=False):
            for layer, module in quant_formats:
                if layer == ours and quant_formats[ours, module] != quant_formats[theirs, module]:
                    raise UsageError(
                        "Pipeline stages of one checkpoint must be quantized alike: TensorRT-LLM numbers the layers of "
                        "each stage from 0.",
                        where=f"{module} of layers {theirs} and {ours}, both the {theirs + 1}. of their stage",
                        found=f"{_name(quant_formats[theirs, module])} and {_name(quant_formats[ours, module])}",
                        fix="pp: 1 with a larger tp, or a recipe that treats these layers alike",
                    )


def _name(quant_format: QuantFormat | None) -> str:
    return "16 bits" if quant_format is None else quant_format.algorithm
