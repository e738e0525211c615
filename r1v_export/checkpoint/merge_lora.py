"""LoRA adapters merged into the weights they belong to: W + scale * B @ A, in float32, one tensor at a time.

The adapter is in the checkpoint itself, as the published training code of InternVL saves it, or in a folder of peft's.
Shape letters: O output features, I input features, R rank.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from r1v_export.checkpoint.checkpoint import AUXILIARY_FILES, Checkpoint
from r1v_export.checkpoint.config_section import Section
from r1v_export.checkpoint.hub_files import CONFIG, readable_config, write_configuration_code, write_json
from r1v_export.checkpoint.listing import shorten
from r1v_export.checkpoint.resolve import resolve
from r1v_export.checkpoint.tensor_file import StoredTensor, read_header
from r1v_export.checkpoint.tensor_store import open_tensors
from r1v_export.checkpoint.tensor_writer import NewTensor, write_tensors
from r1v_export.checkpoint.training_files import ADAPTER_CONFIG
from r1v_export.checkpoint_json import read_json_object
from r1v_export.errors import CheckpointError
from r1v_export.files import fill_folder

_FACTOR = re.compile(r"(?P<linear>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_PEFT_PREFIX = "base_model.model."
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PUBLISHED_SCALE = 2.0
"""The published class makes its adapters with lora_alpha = 2 * rank."""
_WITH_PEFT = "merge it with peft: merge_and_unload(), then save_pretrained(FOLDER)"
_RANKS = ("use_llm_lora", "use_backbone_lora")
_UNSUPPORTED: Mapping[str, Any] = {
    "use_dora": False,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "layer_replication": None,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "trainable_token_indices": None,
}
"""Keys of an adapter_config.json that change what is computed, with the value that does not."""


_KEEP_WEIGHTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the model's weights as they were. PiSSA, OLoRA, CorDA and LoftQ take the
factors out of them: such an adapter belongs to what remained. Source: peft, LoraConfig."""


class Factors(NamedTuple):
    """One linear's adapter."""

    a: StoredTensor
    """[R, I]."""
    b: StoredTensor
    """[O, R]."""
    scale: float


@dataclass(frozen=True)
class LoraMerge:
    """A checkpoint whose adapters fit its weights, to be written with one in the other.

    Attributes:
        folder: of the checkpoint.
        tensors: the merged weights, which are computed as they are written.
    """

    folder: Path
    tensors: Sequence[NewTensor]

    @classmethod
    def open(cls, model: str | Path | None, adapter: Path | None = None) -> LoraMerge:
        """Find adapters and weights, and check that they fit. No weight is read.

        Args:
            model: of the weights, as `Checkpoint.open` takes it.
            adapter: a folder of peft's with adapter_config.json; None where the checkpoint itself holds the adapters.

        Raises:
            CheckpointError: there is no adapter, it is of a kind that is not supported, or does not fit the weights.
        """
        folder = resolve(model).folder
        stored = open_tensors(folder)
        factors = _own_factors(stored) if adapter is None else _peft_factors(adapter)
        weights = {_weight_name(name): tensor for name, tensor in stored.items() if not _FACTOR.fullmatch(name)}
        _check(factors, weights, adapter or folder)
        merged = {
            name: partial(_merged, tensor, factors.get(name.removesuffix(".weight")))
            for name, tensor in weights.items()
        }
        return cls(folder, [NewTensor(name, weights[name].dtype, weights[name].shape, merged[name]) for name in merged])

    def write(self, out: Path, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Checkpoint:
        """Write the checkpoint, and open it.

        Args:
            out: made if it is not there; must be empty.
            on_progress: called with the bytes written so far and in all.

        Raises:
            UsageError: `out` holds something, or cannot be written to.
        """
        with fill_folder(out, last=CONFIG) as unfinished:
            for name in AUXILIARY_FILES:
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, unfinished / name)
            config = readable_config(read_json_object(self.folder / CONFIG)) | dict.fromkeys(_RANKS, 0)
            write_json(unfinished / CONFIG, config)
            write_configuration_code(unfinished, config)
            total = sum(tensor.nbytes for tensor in self.tensors)
            for done in write_tensors(unfinished, self.tensors):
                on_progress(done, total)
        return Checkpoint.open(out)


def _merged(weight_OI: StoredTensor, factors: Factors | None) -> Iterator[torch.Tensor]:
    tensor = weight_OI.read()
    if factors is not None:
        change_OI = factors.b.read().float() @ factors.a.read().float()
        tensor = (tensor.float() + factors.scale * change_OI).to(tensor.dtype)
    yield tensor.flatten()


def _weight_name(name: str) -> str:
    return name.replace(_PEFT_PREFIX, "").replace(".base_layer.", ".")


def _own_factors(stored: Mapping[str, StoredTensor]) -> dict[str, Factors]:
    return _pair({name: tensor for name, tensor in stored.items() if ".lora_" in name}, _PUBLISHED_SCALE)


def _peft_factors(adapter: Path) -> dict[str, Factors]:
    missing = [name for name in (ADAPTER_CONFIG, _ADAPTER_WEIGHTS) if not (adapter / name).is_file()]
    if missing:
        found = (
            f"no {' and no '.join(missing)}" if adapter.is_dir() else "a file" if adapter.exists() else "no such folder"
        )
        fix = f"name the folder that peft saved, with {ADAPTER_CONFIG} and {_ADAPTER_WEIGHTS}"
        raise _refuse("There is no LoRA adapter here.", adapter, found, fix)
    config = Section(read_json_object(adapter / ADAPTER_CONFIG), ADAPTER_CONFIG)
    for key, harmless in _UNSUPPORTED.items():
        if config.get(key) not in (None, harmless):
            raise config.wrong(key, f"{harmless!r}", config.get(key), _WITH_PEFT)
    init = config.get("init_lora_weights")
    if init not in _KEEP_WEIGHTS:
        fix = f"{_WITH_PEFT}; or, if MODEL has the remaining weights already, set init_lora_weights to true"
        raise config.wrong("init_lora_weights", "an initialization that keeps the model's weights", init, fix)
    rank, alpha = config.size("r"), config.number("lora_alpha")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return _pair(read_header(adapter / _ADAPTER_WEIGHTS), scale)


def _pair(stored: Mapping[str, StoredTensor], scale: float) -> dict[str, Factors]:
    halves: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise _refuse("The adapter holds more than the two factors of linears.", tensor.file, name)
        halves.setdefault(_weight_name(match["linear"]), {})[match["factor"]] = tensor
    single = sorted(linear for linear, pair in halves.items() if len(pair) < 2)
    if single:
        raise _refuse("The adapter lacks one of two factors.", "lora_A and lora_B", shorten(single))
    return {linear: Factors(pair["A"], pair["B"], scale) for linear, pair in halves.items()}


def _check(factors: Mapping[str, Factors], weights: Mapping[str, StoredTensor], where: Path) -> None:
    if not factors:
        raise _refuse("There is no LoRA adapter to merge.", where, "no lora_A and lora_B", "name one with --adapter")
    missing = sorted(linear for linear in factors if f"{linear}.weight" not in weights)
    if missing:
        what = "The adapter is of another model: it changes linears that there are not."
        raise _refuse(what, where, shorten(missing))
    for linear, (a, b, _) in factors.items():
        shapes: list[Any] = [list(tensor.shape) for tensor in (weights[f"{linear}.weight"], b, a)]
        fits = all(len(shape) == 2 for shape in shapes) and shapes[1][1] == shapes[2][0]
        if not fits or shapes[0] != [shapes[1][0], shapes[2][1]]:
            found = f"weight {shapes[0]}, B {shapes[1]}, A {shapes[2]}"
            raise _refuse("The adapter does not fit its linear.", linear, found)


def _refuse(what: str, where: object, found: str, fix: str = _WITH_PEFT) -> CheckpointError:
    return CheckpointError(what, where=where, found=found, fix=fix)
