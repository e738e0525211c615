"""compressed-tensors checkpoints: nothing is lost in them, and what they say of themselves is true."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    apply_quantization_config,
    initialize_module_for_quantization,
)
from safetensors.torch import load_file
from torch import nn

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import expected_tensors, stored_names
from r1v_export.pipeline.calibration import fake_quantize
from r1v_export.quantization.groups import linear_shapes
from r1v_export.reference.model import ReferenceEngine, load
from r1v_export.targets.compressed_tensors.runtime.reader import CompressedFiles
from r1v_export.targets.compressed_tensors.target import CompressedTensorsTarget
from r1v_export.targets.compressed_tensors.write.tensors import pack
from tests.compressed_checkpoints import our_model
from tests.targets import vllm

READERS = Path(__file__).parents[2] / "readers"
PACKAGE = json.loads((READERS / "compressed-tensors-0.17.0.json").read_text())


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def require_lossless(written) -> None:
    files, spec = CompressedFiles(written.folder), written.checkpoint.spec
    for name, linear in written.artifact.linears():
        parts = [part.removesuffix(".weight") for part in stored_names(f"{name}.weight", spec)]
        assert torch.equal(torch.cat([files.dequantized(part) for part in parts]), linear.dequantize()), name


def test_every_weight_is_the_artifacts_bit_for_bit(chat):
    require_lossless(chat)


def test_every_part_of_a_weight_is_the_artifacts_bit_for_bit(native):
    require_lossless(native)


def test_the_package_gives_every_linear_its_scheme_and_decompresses_its_weight_to_the_artifacts(chat):
    model = our_model(chat.checkpoint, torch.float32)
    apply_quantization_config(model, QuantizationConfig.model_validate(config_of(chat.folder)))
    stored, found = tensors_of(chat.folder), set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not hasattr(module, "quantization_scheme"):
            continue
        own = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(f"{name}.")}
        scheme, linear = module.quantization_scheme, chat.artifact.linear(name)
        weight = BaseCompressor.get_value_from_registry(scheme.format).decompress(own, scheme)["weight"]
        assert torch.equal(weight, linear.dequantize()), name
        assert (scheme.input_activations is not None) == (linear.input_type is not None)
        if linear.input_scale is not None:
            assert torch.equal(own["input_scale"], linear.input_scale.reshape(module.input_scale.shape))
        found.add(name)
    assert found == set(chat.artifact.schemes)


def require_the_same_import(written) -> None:
    checkpoint, artifact = Checkpoint.open(written.folder), written.artifact
    assert set(checkpoint.quantized.linears) == set(artifact.schemes)
    for name, linear in artifact.linears():
        decoded, stored = checkpoint.quantized.linears[name].decode(), checkpoint.quantized.linears[name]
        assert torch.equal(decoded.qweight, linear.qweight), name
        assert torch.equal(decoded.scale.expand(linear.scale.shape), linear.scale), name
        for field in ("zero_point", "input_scale", "input_order"):
            ours, theirs = getattr(decoded, field), getattr(linear, field)
            assert (ours is None and theirs is None) or torch.equal(ours, theirs), name
        assert stored.layout.qweight_type == linear.weight_type
        assert (stored.layout.inputs or "").partition(" ")[0] == (linear.input_type or "")
    for layer, pair in enumerate(checkpoint.quantized.cache_scales):
        scales = artifact.kv_scales(layer)
        assert [float(stored.read()) for stored in pair] == [pytest.approx(scales.key), pytest.approx(scales.value)]


def test_it_is_imported_again_bit_for_bit(chat):
    require_the_same_import(chat)


def test_linears_in_parts_are_imported_again_bit_for_bit(native):
    require_the_same_import(native)


def test_what_is_not_quantized_is_the_sources_bit_for_bit(chat):
    stored, spec, artifact = tensors_of(chat.folder), chat.checkpoint.spec, chat.artifact
    for name in expected_tensors(spec):
        if name.removesuffix(".weight") in artifact.schemes:
            continue
        expected = artifact.overrides[name]() if name in artifact.overrides else chat.checkpoint.read(name)
        assert torch.equal(torch.cat([stored[part] for part in stored_names(name, spec)]), expected)


def test_it_computes_what_the_fake_quantized_model_computes(chat):
    model = load(chat.checkpoint)
    fake_quantize(model, chat.artifact)
    reference, spec = ReferenceEngine(model), chat.checkpoint.spec
    engine = CompressedTensorsTarget().open(chat.folder, spec, "cpu")
    tile = spec.tiling.tile_size
    pixels = torch.rand(1, 3, tile, tile, generator=torch.Generator().manual_seed(0)).numpy()
    features = reference.vision(pixels)
    assert abs(engine.vision(pixels) - features).max() < 1e-2 * abs(features).max()
    ids = torch.randint(0, 255, (1, 8), generator=torch.Generator().manual_seed(1)).numpy()
    embeds = reference.embed(ids, torch.zeros(0, spec.language.hidden_size).numpy())
    positions = torch.arange(8)[None].numpy()
    zero, eight, last = (torch.tensor(value).numpy() for value in ([0], [8], [[7]]))
    logits = [e.decoder(1, 16).step(embeds, positions, zero, eight, last) for e in (reference, engine)]
    assert abs(logits[0] - logits[1]).max() < 1e-2 * abs(logits[0]).max()


def test_every_linear_is_named_once_as_quantized_or_as_ignored(chat):
    config, spec = config_of(chat.folder), chat.checkpoint.spec
    targets = [name for group in config["config_groups"].values() for name in group["targets"]]
    stored = [
        name.removesuffix(".weight")
        for linear in linear_shapes(spec)
        for name in stored_names(f"{linear}.weight", spec)
    ]
    assert sorted(targets + [name for name in config["ignore"] if name != "lm_head"]) == sorted(stored)
    assert set(targets) == {f"{name}" for name in chat.artifact.schemes}


def test_linears_that_runtimes_fuse_are_in_one_group(chat):
    for group in config_of(chat.folder)["config_groups"].values():
        for name in group["targets"]:
            for fused in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
                prefix, _, own = name.rpartition(".")
                assert own not in fused or all(f"{prefix}.{other}" in group["targets"] for other in fused)


@pytest.mark.parametrize(
    ("recipe", "declared"),
    [
        ("int4-128", None),
        ("int4-no-order", None),
        ("int4-static-order", "weight"),
        ("int4-group-order", "group"),
        ("uint4-group-order", "group"),
    ],
)
def test_the_order_of_gptqs_columns_is_declared_in_the_packages_words(sources, make, recipe, declared):
    written = make(sources["internvl_chat"], recipe)
    (group,) = QuantizationConfig.model_validate(config_of(written.folder)).config_groups.values()
    assert group.weights.actorder == declared


def test_groups_in_activation_order_have_the_packages_tensor(sources, make):
    module = nn.Linear(512, 256)
    written = make(sources["internvl_chat"], "int4-group-order")
    (scheme,) = QuantizationConfig.model_validate(config_of(written.folder)).config_groups.values()
    initialize_module_for_quantization(module, scheme)
    stored = tensors_of(written.folder)["language_model.model.layers.0.mlp.down_proj.weight_g_idx"]
    assert stored.shape == module.weight_g_idx.shape
    assert torch.equal(stored.sort().values, torch.arange(512, dtype=torch.int32) // 128)
    assert not torch.equal(stored, stored.sort().values)


def test_an_fp8_cache_is_declared_and_has_its_scales(sources, make):
    written = make(sources["internvl_chat"], "fp8-kv")
    assert config_of(written.folder)["kv_cache_scheme"] == PACKAGE["kv_cache_scheme"]
    stored = tensors_of(written.folder)
    for layer in range(2):
        scales = written.artifact.kv_scales(layer)
        attention = f"language_model.model.layers.{layer}.self_attn"
        assert float(stored[f"{attention}.k_scale"]) == pytest.approx(scales.key)
        assert float(stored[f"{attention}.v_scale"]) == pytest.approx(scales.value)


def test_the_packages_own_configuration_takes_every_key(chat):
    for group in config_of(chat.folder)["config_groups"].values():
        assert group.keys() <= set(PACKAGE["scheme_fields"])
        assert group["format"] in PACKAGE["formats"]
        for arguments in (group["weights"], group["input_activations"]):
            assert arguments is None or arguments.keys() <= set(PACKAGE["argument_fields"])


def test_four_bit_values_are_packed_as_the_package_packs_them():
    values = torch.tensor(PACKAGE["packing"]["values"], dtype=torch.int8)
    assert pack(values + 8).tolist() == PACKAGE["packing"]["along_inputs"]
    assert pack((values + 8).T).T.tolist() == PACKAGE["packing"]["along_outputs"]


def test_tensors_have_the_packages_names_and_shapes(sources, make):
    linear = "language_model.model.layers.0.mlp.down_proj"
    for recipe, expected in PACKAGE["tensors"].items():
        stored = tensors_of(make(sources["internvl_chat"], recipe).folder)
        found = {
            name.removeprefix(f"{linear}."): [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in stored.items()
            if name.startswith(f"{linear}.")
        }
        assert found == expected, recipe


def test_tensors_have_the_names_and_dtypes_that_vllm_loads(chat):
    stored = tensors_of(chat.folder)
    for group in config_of(chat.folder)["config_groups"].values():
        if group["weights"].get("actorder") == "group":  # which vLLM refuses: tests/targets/test_readers.py
            continue
        expected = vllm.tensors_of(group)
        for linear in group["targets"]:
            found = {
                suffix: str(stored[f"{linear}.{suffix}"].dtype).removeprefix("torch.")
                for suffix in (name.removeprefix(f"{linear}.") for name in stored if name.startswith(f"{linear}."))
                if suffix != "bias"
            }
            assert found.keys() == expected.keys()
            assert all(expected[suffix] in (dtype, "any") for suffix, dtype in found.items())


def test_scales_of_an_fp8_cache_have_names_that_vllm_loads(sources, make):
    names = [name for name in tensors_of(make(sources["internvl_chat"], "fp8-kv").folder) if "self_attn.k_s" in name]
    assert names
    assert all(name.endswith(tuple(vllm.READER["cache_scales"])) for name in names)
