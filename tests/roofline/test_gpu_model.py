"""Weights on each GPU, against the files that builds write for them, and what GPUs cannot share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.checkpoint.tensor_store import open_tensors
from r1v_export.config import BuildConfig
from r1v_export.errors import UsageError
from r1v_export.parallel import Parallel
from r1v_export.pipeline.build import build
from r1v_export.quantization.recipe import load, resolve
from r1v_export.roofline.gpu_model import GpuModel
from r1v_export.targets.tensorrt_llm.checkpoint.formats import language_schemes, module_quant_formats
from r1v_export.targets.tensorrt_llm.checkpoint.mapping import Mapping
from r1v_export.targets.tensorrt_llm.checkpoint.weights import Weights
from r1v_export.targets.tensorrt_llm.checkpoint.writer import _Writer, write_checkpoint
from tests.tiny_models import tiny_spec

FP32_ROTARY = 2 * 4
"""Bytes of cosine and sine, which graphs hold as tables."""


@pytest.fixture(scope="module")
def spec_38b(tmp_path_factory):
    """Skywork-R1V3-38B, all of its layers; its checkpoint has the true size and takes no disk."""
    empty = synthesize(tmp_path_factory.mktemp("38b"), preset="r1v3-38b", weights="empty")
    return Checkpoint.open(empty).spec


def test_nothing_but_weights_is_in_the_files_of_two_gpus(tmp_path) -> None:
    nano = Checkpoint.open()
    write_checkpoint(nano, None, tmp_path, torch.bfloat16, parallel=Mapping(2))
    model = GpuModel(nano.spec, "bfloat16", parallel=Parallel(2))
    for rank in range(2):
        written = sum(
            tensor.nbytes for tensor in tensors_of(tmp_path / f"rank{rank}.safetensors", tmp_path / f"{rank}")
        )
        assert model.stage_weight_bytes[0][1] == written


def tensors_of(file, folder):
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(file)
    return open_tensors(folder).values()


def test_a_quantized_build_of_nano_writes_what_was_sized(tmp_path) -> None:
    config = BuildConfig(
        precision="int4",
        recipe="int4-rtn",
        targets=["tensorrt-llm"],
        parity={"enabled": False},
        calibration={"samples": 1},
    )
    bundle = build(config, tmp_path / "bundle").out
    spec = Checkpoint.open().spec
    model = GpuModel(spec, "bfloat16", resolve(load("int4-rtn"), spec))
    vision, language = model.stage_weight_bytes[0]
    file = bundle / "engines/tensorrt-llm/checkpoint/rank0.safetensors"
    # The file holds scales as float32; engines keep them in 16 bits.
    written = sum(tensor.nbytes for tensor in tensors_of(file, tmp_path / "rank"))
    scales = sum(t.nbytes for t in tensors_of(file, tmp_path / "scales") if t.name.endswith("weights_scaling_factor"))
    ones = sum(t.nbytes for t in tensors_of(file, tmp_path / "ones") if t.name.endswith("prequant_scaling_factor"))
    assert language == written - scales / 2 - ones
    graphs = sum((bundle / f"graphs/{name}.data").stat().st_size for name in ("vision", "projector"))
    assert vision == pytest.approx(graphs, rel=0.03)  # tensors begin at multiples of a page


@pytest.mark.parametrize("recipe", [None, "fp8-tensor", "int8-smoothquant", "int4-awq", "w4a8"])
@pytest.mark.parametrize("parallel", [Parallel(), Parallel(8), Parallel(2, 3)])
def test_a_38b_checkpoint_is_planned_with_as_many_bytes_on_every_gpu(spec_38b, recipe, parallel: Parallel) -> None:
    """Within 3 %, of which the float32 scales of 4-bit weights in the files are 2.5; exact in 16 bits."""
    schemes = resolve(load(recipe), spec_38b) if recipe else {}
    formats = module_quant_formats(spec_38b.language, language_schemes(schemes))
    weights = Weights(SimpleNamespace(spec=spec_38b), None, formats, torch.bfloat16)
    writer = _Writer(weights, Mapping(parallel.tp, parallel.pp), 80)
    model = GpuModel(spec_38b, "bfloat16", schemes, parallel=parallel)
    model.check()
    for stage in range(parallel.pp):
        planned = sum(tensor.nbytes for tensor in writer._tensors(stage, 0))
        assert model.stage_weight_bytes[stage][1] == pytest.approx(planned, rel=0.03 if recipe else 0)


def test_graphs_hold_the_weights_and_the_rotary_tables(nano_bundle) -> None:
    spec = Checkpoint.open().spec
    language = spec.language
    tables = language.max_position_embeddings * language.head_dim // 2 * FP32_ROTARY
    stored = sum(file.stat().st_size for file in (nano_bundle / "graphs").glob("*.data"))
    assert sum(GpuModel(spec, "float32").stage_weight_bytes[0]) + tables == pytest.approx(stored, rel=0.01)


def test_stages_hold_each_layer_once() -> None:
    spec = tiny_spec(language={"num_layers": 5})
    whole = GpuModel(spec, "float16").stage_weight_bytes[0]
    stages = GpuModel(spec, "float16", parallel=Parallel(1, 3)).stage_weight_bytes
    assert [stage[0] for stage in stages] == [whole[0]] * 3
    assert sum(stage[1] for stage in stages) == whole[1]


def test_a_tied_head_is_held_next_to_the_embedding_table() -> None:
    tied, own = (GpuModel(tiny_spec(tie_word_embeddings=tie), "float16").stage_weight_bytes[0] for tie in (True, False))
    assert tied == own


@pytest.mark.parametrize(
    ("parallel", "recipe", "complaint"),
    [
        (Parallel(3), None, "attention heads"),
        (Parallel(4), None, "key-value heads"),
        (Parallel(1, 3), None, "more pipeline stages than layers"),
        (Parallel(2), "int4-rtn", "split across two GPUs"),
    ],
)
def test_what_gpus_cannot_share_is_refused_with_the_cause(parallel: Parallel, recipe, complaint: str) -> None:
    spec = tiny_spec(language={"hidden_size": 128, "head_dim": 32})
    schemes = resolve(load(recipe), spec) if recipe else {}
    with pytest.raises(UsageError, match=complaint):
        GpuModel(spec, "float16", schemes, parallel=parallel).check()


def test_intermediate_features_are_shared_evenly_too() -> None:
    with pytest.raises(UsageError, match="intermediate features"):
        GpuModel(tiny_spec(language={"intermediate_size": 129}), "float16", parallel=Parallel(2)).check()
