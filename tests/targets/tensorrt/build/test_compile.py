"""What TensorRT refuses, and how it is reported: with the real parser and builder of TensorRT-RTX."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from r1v_export import contract
from r1v_export.errors import CapabilityError, GraphError
from r1v_export.progress import ignore_progress
from r1v_export.targets.tensorrt.build.compile import Job, compile_plan, layer_facts, require_types
from r1v_export.targets.tensorrt.build.plan import GRAPH, PLAN
from r1v_export.targets.tensorrt.build.profiles import BATCH, LOGIT_POSITIONS, SEQ, Range

VISION_PROFILE = [{"tiles": Range(1, 1, 2)}]


def job(fp32, model: ir.Model) -> Job:
    return Job(contract.VISION, model, VISION_PROFILE, fp32.folder, (89,))


def lowered(fp32) -> ir.Model:
    return ir.load(fp32.engine_folder / f"{contract.VISION}{GRAPH}")


def change(model: ir.Model, old: str, operator: str) -> str:
    """Put another operator in the place of the first one of its kind in layer 1; returns the node's name."""
    node = next(node for node in model.graph if node.op_type == old and "layers.1." in str(node.name))
    new = ir.node(operator, node.inputs[:1], name=node.name)
    new.outputs[0].shape, new.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], node.outputs, new.outputs)
    return str(new.name)


def test_an_operator_that_the_parser_does_not_know_is_named_with_the_module_it_came_from(
    fp32, library, tmp_path
) -> None:
    model = lowered(fp32)
    node = change(model, "Gelu", "Bernoulli")
    with pytest.raises(GraphError) as caught:
        compile_plan(library, job(fp32, model), tmp_path, ignore_progress)
    assert "Bernoulli" in caught.value.what
    assert node in str(caught.value.where)
    assert "vision_model.encoder.layers.1.mlp" in str(caught.value.fix)
    assert not list(tmp_path.glob(f"*{PLAN}"))


def test_attention_without_a_fused_kernel_is_built_as_several_and_the_description_says_so(fp32) -> None:
    """TensorRT has fused attention for 16 bits only; the engine of this fixture computes in float32."""
    assert not fp32.info(contract.VISION).fused_attention
    assert not fp32.info(contract.DECODER).fused_attention
    assert fp32.info(contract.PROJECTOR).fused_attention  # it has none that could be decomposed


def test_fp8_is_refused_for_gpus_before_ada(fp32) -> None:
    qweight = ir.tensor(np.zeros(1, ir.DataType.FLOAT8E4M3FN.numpy()), name="qweight")
    value = ir.Value(name="qweight", shape=ir.Shape([1]), type=ir.TensorType(qweight.dtype), const_value=qweight)
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[value]), ir_version=10)
    require_types(model, (89, 120), "x")
    with pytest.raises(CapabilityError, match=r"float8e4m3fn[\s\S]*89 or newer[\s\S]*80"):
        require_types(model, (80, 120), "x")


def test_a_disk_without_room_for_the_weights_is_said_before_the_build(fp32, library, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(CapabilityError, match="no room for a plan"):
        compile_plan(library, job(fp32, lowered(fp32)), tmp_path, ignore_progress)
    assert not list(tmp_path.iterdir())


def projector_job(fp32) -> Job:
    graph = ir.load(fp32.engine_folder / f"{contract.PROJECTOR}{GRAPH}")
    return Job(contract.PROJECTOR, graph, VISION_PROFILE, fp32.folder, (89,))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("streams", [True, False])
def test_a_disk_that_fills_up_while_a_real_plan_is_written_ends_in_one_message(
    fp32, library, tmp_path, monkeypatch, streams
) -> None:
    monkeypatch.setattr(type(library), "streams", streams)
    (tmp_path / f"{contract.PROJECTOR}{PLAN}").symlink_to("/dev/full")
    with pytest.raises(CapabilityError, match=r"no room for a plan[\s\S]*projector\.plan[\s\S]*-o FOLDER") as caught:
        compile_plan(library, projector_job(fp32), tmp_path, ignore_progress)
    assert caught.value.exit_code == 4


def test_a_library_that_does_not_stream_gives_the_same_kind_of_plan(fp32, library, tmp_path, monkeypatch) -> None:
    """As older ones of TensorRT do; the module is TensorRT-RTX's, whose interface is the same."""
    monkeypatch.setattr(type(library), "streams", False)
    info = compile_plan(library, projector_job(fp32), tmp_path, ignore_progress)
    content = (tmp_path / f"{contract.PROJECTOR}{PLAN}").read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (info.plan_bytes, info.sha256)
    assert info.bindings == fp32.info(contract.PROJECTOR).bindings


def test_a_decoder_that_gives_logits_of_several_tokens_is_built(fp32, library, tmp_path) -> None:
    graph = ir.load(fp32.engine_folder / f"{contract.DECODER}{GRAPH}")
    profile = {BATCH: Range(1, 1, 2), SEQ: Range(1, 4, 4), LOGIT_POSITIONS: Range(1, 3, 4)}
    info = compile_plan(library, Job(contract.DECODER, graph, [profile], fp32.folder, (89,)), tmp_path, ignore_progress)
    assert info.profiles[0][LOGIT_POSITIONS] == (1, 3, 4)
    shapes = {binding.name: binding.shape for binding in info.bindings}
    assert shapes[contract.LOGITS] == (BATCH, LOGIT_POSITIONS, fp32.spec.language.vocab_size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a driver")
def test_a_plan_without_weights_asks_for_a_gpu_which_is_why_it_is_refused_without_one(fp32, library, tmp_path) -> None:
    whole = projector_job(fp32)
    compile_plan(library, whole, tmp_path, ignore_progress)
    with pytest.raises(GraphError, match="CUDA_SUCCESS"):
        compile_plan(library, replace(whole, strip=True), tmp_path, ignore_progress)


def test_a_layer_of_the_builders_log_says_types_and_nodes() -> None:
    line = (
        "Name: a/MatMul_myl0_4, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,256], Datatype: FP8 }], "
        "Constants: [ { Name: w, Datatype: FP8 }], Outputs: [ { Name: y, Datatype: Half }], TacticName: t, "
        "StreamId: 0, Metadata: [ONNX Layer: a/MatMul][ONNX Layer: a.weight.T/DequantizeLinear]"
    )
    facts = layer_facts(line)
    assert (facts["name"], facts["kind"]) == ("a/MatMul_myl0_4", "gemm")
    assert (facts["inputs"], facts["constants"], facts["outputs"]) == (["FP8"], ["FP8"], ["Half"])
    assert facts["nodes"] == ["a/MatMul", "a.weight.T/DequantizeLinear"]
