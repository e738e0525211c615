"""A compressed-tensors checkpoint that is not whole is refused by name when it is read back."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from r1v_export.errors import BundleError
from r1v_export.targets.compressed_tensors.runtime.reader import open_compressed


def test_a_missing_scale_is_named(sources, make, tmp_path):
    written = make(sources["internvl_chat"], "int4-128")
    for path in written.folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = {name: value for path in written.folder.glob("*.safetensors") for name, value in load_file(path).items()}
    missing = "language_model.model.layers.1.mlp.up_proj.weight_scale"
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BundleError, match=missing.replace(".", r"\.")):
        open_compressed(tmp_path, written.checkpoint.spec, "cpu")
