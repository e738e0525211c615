"""A compressed-tensors checkpoint that is not whole is refused by name when it is read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from r1v_export.errors import BundleError
from r1v_export.targets.compressed_tensors.runtime.reader import open_compressed

LINEAR = "language_model.model.layers.1.mlp.up_proj"


def changed_copy(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """A copy of a checkpoint, one file of tensors, which `change` edits in place."""
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    tensors = {name: value for path in source.glob("*.safetensors") for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(("recipe", "suffix"), [("int4-128", "weight_scale"), ("int4-group-order", "weight_g_idx")])
def test_a_missing_tensor_is_named(sources, make, tmp_path, recipe, suffix):
    written = make(sources["internvl_chat"], recipe)
    changed_copy(written.folder, tmp_path, lambda tensors: tensors.pop(f"{LINEAR}.{suffix}"))
    with pytest.raises(BundleError, match=re.escape(f"{LINEAR}.{suffix}")):
        open_compressed(tmp_path, written.checkpoint.spec, "cpu")


@pytest.mark.parametrize("group", [0, 7, -1])
def test_groups_of_other_sizes_are_refused(sources, make, tmp_path, group):
    written = make(sources["internvl_chat"], "int4-group-order")
    changed_copy(written.folder, tmp_path, lambda tensors: tensors[f"{LINEAR}.weight_g_idx"].fill_(group))
    with pytest.raises(BundleError, match=re.escape(f"{LINEAR}.weight_g_idx does not give each group 128 inputs")):
        open_compressed(tmp_path, written.checkpoint.spec, "cpu")
