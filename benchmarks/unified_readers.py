"""A unified checkpoint in other people's hands: compressed-tensors reads its configuration and dequantizes its weights,
transformers takes them into its own InternVL, and both models answer alike.

    peer/bin/pip install compressed-tensors pydantic pyyaml tokenizers jinja2 pillow     # see unified_checkpoint.py
    PYTHONPATH=. peer/bin/python benchmarks/unified_readers.py FOLDER...

FOLDER is the engines/hf-unified of a bundle, of a checkpoint in transformers' own `internvl` layout. Inputs are rounded
by nobody here: what is compared are weights, and our engine with its rounding of inputs taken off.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from r1v_export.checkpoint.config import read_configuration
from r1v_export.targets.hf_unified.runtime.reader import open_unified

SCALES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "k_scale", "v_scale")


def weight_args(config: QuantizationConfig, linear: str) -> QuantizationArgs:
    """How compressed-tensors understands a linear's weight."""
    for scheme in config.config_groups.values():
        if linear in scheme.targets or scheme.targets == ["Linear"]:
            return scheme.weights
    raise KeyError(linear)


def dequantized(config: QuantizationConfig, linear: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    qweight, scale = tensors[f"{linear}.weight"], tensors[f"{linear}.weight_scale"]
    args = weight_args(config, linear)
    if qweight.dtype == torch.uint8:
        qweight = torch.stack((qweight & 15, qweight >> 4), 1).flatten(0, 1).to(torch.int8)
        qweight = torch.where(qweight > 7, qweight - 16, qweight)
    if args.strategy == "channel":
        scale = scale[:, None]
    return dequantize(qweight, scale, None, args, torch.float32)


def check(folder: Path) -> dict[str, Any]:
    declared = json.loads((folder / "config.json").read_text())["quantization_config"]
    known = {key: declared[key] for key in ("config_groups", "ignore", "kv_cache_scheme") if key in declared}
    config = QuantizationConfig.model_validate(known)
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    linears = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    weights = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(SCALES)}
    weights |= {f"{linear}.weight": dequantized(config, linear, tensors) for linear in linears}
    hf_config = AutoConfig.from_pretrained(folder)
    del hf_config.quantization_config
    model = AutoModelForImageTextToText.from_config(hf_config, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    spec = read_configuration(folder, stores_lm_head="lm_head.weight" in weights, stored_dtype="bfloat16").spec
    engine = open_unified(folder, spec, "cpu")
    for module in engine.model.modules():
        module._forward_pre_hooks.clear()
    return {
        "folder": str(folder),
        "quant_algo": declared["quant_algo"],
        "linears": len(linears),
        "missing": missing,
        "unexpected": unexpected,
        "tokens": len(AutoTokenizer.from_pretrained(folder)("What is this?").input_ids),
        "logits_max_abs_difference": logits_difference(model, engine.model),
    }


@torch.no_grad()
def logits_difference(theirs: Any, ours: Any) -> float:
    from r1v_export.reference.language import CacheStep, rotary_tables

    ids = torch.randint(0, 255, (1, 16), generator=torch.Generator().manual_seed(0))
    tile = ours.spec.tiling.tile_size
    pixels = torch.rand(1, 3, tile, tile, generator=torch.Generator().manual_seed(1))
    image_ids = torch.full((1, ours.spec.tokens_per_tile), ours.spec.image_token_id)
    prompt = torch.cat([ids[:, :8], image_ids, ids[:, 8:]], dim=1)
    expected = theirs(input_ids=prompt, pixel_values=pixels).logits
    embeds = ours.embed(prompt, ours.image_embeds(pixels).flatten(0, 1))
    length = prompt.shape[1]
    step = CacheStep(torch.arange(length)[None], torch.zeros(1, dtype=torch.int64), torch.full((1,), length))
    logits, _ = ours.language_model(embeds, rotary_tables(ours.spec.language, length), step, None)
    return float((logits - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    print(json.dumps([check(Path(name)) for name in sys.argv[1:]], indent=2))
