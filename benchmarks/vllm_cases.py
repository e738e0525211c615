"""The folders that vLLM is given: each a recipe, a target, and what the shipped recipe is changed to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import yaml

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.quantization.groups import linear_shapes
from r1v_export.quantization.recipe import load, parse
from r1v_export.targets.hub_folder import stored_linears
from r1v_export.targets.readers import GROUP_ORDER, formats_in

SAMPLES = 32
"""Calibration samples: enough for answers that are compared with our reader of the same folder."""

LANGUAGE = "language_model.*"
TOWERS = ["vision_model.*", "mlp1.*"]
EVERYTHING = [*TOWERS, LANGUAGE]
WITHOUT_KEYS = tuple(f"language_model.*.{name}_proj" for name in ("q", "v", "o", "gate", "up", "down"))


Kernels = Literal["CPU", "CPU, AMX kernels", "CPU, FP8 kernels mended"]
AMX: Kernels = "CPU, AMX kernels"
MENDED: Kernels = "CPU, FP8 kernels mended"


@dataclass(frozen=True)
class Case:
    """A folder that vLLM is given."""

    target: str
    """"checkpoint": r1v-nano as it is."""
    precision: str
    """A shipped recipe, or a checkpoint's dtype."""
    note: str = ""
    """What differs from the shipped recipe, in words."""
    modules: tuple[str, ...] = ()
    """Quantize these, not what the recipe does."""
    weights: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the recipe's weights that are changed."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    kv_cache: str | None = None
    dtype: str = "bfloat16"
    """What vLLM computes in."""
    layout: Literal["internvl_chat", "internvl"] = "internvl_chat"
    """`internvl`: a random model of nano's sizes in transformers' own layout, of which only loading is seen."""
    kernels: Kernels = "CPU"
    """Which of vLLM's are taken: vllm_reader.py."""

    @property
    def artifact(self) -> str:
        """What the matrix calls it."""
        model = "r1v-nano" if self.layout == "internvl_chat" else "random model in the internvl layout,"
        return f"{model} {self.precision}" + (f", {self.note}" if self.note else "")

    @property
    def name(self) -> str:
        """A file name of its own."""
        words = f"{self.target} {self.artifact} {self.dtype} {self.kernels.removeprefix('CPU')}"
        return "-".join(words.replace(",", "").replace(":", "").split())

    @property
    def bundle(self) -> str:
        """A folder name, the same for cases that read the same bundle."""
        layout = self.layout if self.layout == "internvl" else None
        parts = [layout, self.precision, *self.modules, *self.weights.values(), *self.inputs.values(), self.kv_cache]
        return "-".join(str(part).strip(".*") for part in parts if part is not None)

    @property
    def has_fp8_cache(self) -> bool:
        """Whether the artifact has scales of an FP8 cache."""
        return self.kv_cache == "fp8" or self.precision == "fp8-kv"


def _both(target: str, precision: str, **changes: Any) -> tuple[Case, Case]:
    """A recipe that quantizes the whole model, and the same for the language model only."""
    words = changes.pop("note", "")
    only = f"{words}, vision and projector in 16 bits" if words else "vision and projector in 16 bits"
    return (
        Case(target, precision, words, **changes),
        Case(target, precision, only, modules=(LANGUAGE,), **changes),
    )


IN_FLOAT32 = "computed in float32"
HF, CT = "hf-unified", "compressed-tensors"
CASES = (
    Case("checkpoint", "bf16"),
    Case("checkpoint", "bf16", IN_FLOAT32, dtype="float32"),
    *_both(HF, "fp8-tensor"),
    *_both(HF, "fp8-rowwise"),
    Case(HF, "fp8-tensor", "FP8 cache", kv_cache="fp8"),
    Case(HF, "int4-gptq"),
    Case(HF, "int4-awq"),
    Case(HF, "w4a8"),
    Case(HF, "mixed"),
    Case(CT, "int4-gptq"),
    Case(CT, "int4-gptq", "vision and projector too", modules=tuple(EVERYTHING)),
    Case(CT, "int4-gptq", "groups of 64", weights={"group_size": 64}),
    Case(CT, "int4-gptq", "groups of 32", weights={"group_size": 32}),
    Case(CT, "int4-gptq", "asymmetric", weights={"type": "uint4"}),
    Case(
        CT,
        "int4-gptq",
        "asymmetric, groups of 32, vision and projector too",
        modules=tuple(EVERYTHING),
        weights={"type": "uint4", "group_size": 32},
    ),
    Case(CT, "int4-gptq", "act_order: none", weights={"act_order": "none"}),
    Case(CT, "int4-gptq", "act_order: group", weights={"act_order": "group"}),
    Case(
        CT,
        "int4-gptq",
        "act_order: group, vision and projector too",
        modules=tuple(EVERYTHING),
        weights={"act_order": "group"},
    ),
    Case(CT, "int4-gptq", "asymmetric, act_order: group", weights={"type": "uint4", "act_order": "group"}),
    Case(CT, "int4-gptq", "k_proj in 16 bits", modules=WITHOUT_KEYS),
    Case(HF, "fp8-tensor", "k_proj in 16 bits", modules=WITHOUT_KEYS),
    Case(CT, "int4-awq"),
    *_both(CT, "fp8-tensor"),
    *_both(CT, "fp8-rowwise"),
    *_both(CT, "fp8"),
    *_both(CT, "fp8-kv"),
    Case(CT, "fp8-rowwise", "FP8 cache", kv_cache="fp8"),
    *_both(CT, "int8-smoothquant"),
    *_both(CT, "int8-smoothquant", note="dynamic inputs", inputs={"mode": "dynamic"}),
    Case(CT, "mixed"),
    Case(CT, "fp8-rowwise", layout="internvl"),
    Case(HF, "fp8-rowwise", layout="internvl"),
    *_both(CT, "fp8-tensor", kernels=MENDED),
    *_both(CT, "fp8", kernels=MENDED),
    *_both(CT, "fp8-kv", kernels=MENDED),
    Case(CT, "mixed", kernels=MENDED),
    Case(HF, "fp8-tensor", kernels=AMX),
    Case(CT, "fp8-tensor", kernels=AMX),
    *_both(CT, "int8-smoothquant", kernels=AMX),
    Case(CT, "int4-gptq", kernels=AMX),
    Case("checkpoint", "bf16", kernels=AMX),
    # vLLM's ModelOpt reader and its CPU kernel for INT4 compute in 16 bits only.
    Case(CT, "fp8-tensor", IN_FLOAT32, dtype="float32", kernels=MENDED),
    Case(CT, "fp8-rowwise", IN_FLOAT32, dtype="float32"),
    Case(CT, "int8-smoothquant", IN_FLOAT32, dtype="float32"),
)


def write_build(case: Case, folder: Path) -> Path:
    """A build file for every target that has a case of this recipe, and its recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    content = recipe(case)
    saved = folder / f"{case.bundle}-recipe.yaml"
    saved.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    build = {
        "model": "r1v-nano" if case.layout == "internvl_chat" else str(random_model(folder / "internvl")),
        "precision": parse(saved.read_text(encoding="utf-8")).precision,
        "recipe": str(saved),
        "calibration": {"samples": SAMPLES},
        "targets": {other.target: {} for other in CASES if other.bundle == case.bundle},
        "parity": {"enabled": False},
    }
    file = folder / f"{case.bundle}.yaml"
    file.write_text(yaml.safe_dump(build), encoding="utf-8")
    return file


def random_model(folder: Path) -> Path:
    """A random model of nano's sizes in the layout of transformers' own class."""
    return folder if folder.exists() else synthesize(folder, preset="nano", layout="internvl")


def recipe(case: Case) -> dict[str, Any]:
    """The shipped recipe with what the case changes."""
    content: dict[str, Any] = yaml.safe_load(load(case.precision).to_yaml())
    rule = content["rules"][-1]
    if case.modules:
        content["rules"] = [rule]
        rule["modules"] = list(case.modules)
    for each in content["rules"]:
        if each["scheme"] is not None:
            each["scheme"]["weights"] |= case.weights
            if case.inputs:
                each["scheme"]["inputs"] |= case.inputs
    if case.kv_cache is not None:
        content["kv_cache"] = case.kv_cache
    return content


def all_rows(rows: Iterable[dict[str, Any]], earlier: Iterable[dict[str, Any]], cases: Iterable[Case]) -> list[dict]:
    """A row for each case: the one measured now, else that of earlier results.

    Raises:
        KeyError: neither has one.
    """
    known = {(row["target"], row["artifact"], row.get("device", "CPU")): row for row in (*earlier, *rows)}
    return [known[case.target, case.artifact, case.kernels] for case in cases]


def format_name(group: Mapping[str, Any]) -> str:
    """What the table calls the format of a config group."""
    return GROUP_ORDER if group["weights"].get("actorder") == "group" else group["format"]


def formats(case: Case, folder: Path) -> list[str]:
    """The formats in a folder, by the names of r1v_export/targets/readers.py; none where no target of ours wrote it."""
    if case.target == "checkpoint":
        return []
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    spec = Checkpoint.open().spec.model_copy(update={"layout": case.layout})
    stored = {linear: stored_linears(linear, spec)[0] for linear in linear_shapes(spec)}
    if config["quant_method"] == CT:
        targets = {name: group for group in config["config_groups"].values() for name in group["targets"]}
        group_of = {linear: targets[name] for linear, name in stored.items() if name in targets}
        kinds = {name: format_name(group) for name, group in group_of.items()}
        return sorted(formats_in(kinds, group_of, spec))
    one = {"quant_algo": config["quant_algo"]}
    unnamed = {name: one for name in stored.values() if not any(fnmatch(name, each) for each in config["ignore"])}
    named = config.get("quantized_layers", unnamed)
    layers = {linear: named[name] for linear, name in stored.items() if name in named}
    return sorted(formats_in({name: layer["quant_algo"] for name, layer in layers.items()}, layers, spec))
