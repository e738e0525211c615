from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from r1v_export import contract
from r1v_export.targets.onnxruntime.head_file import HEAD_DATA, head_bytes
from r1v_export.targets.onnxruntime.session_options import WEIGHTS_FOLDER
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from r1v_export.targets.onnxruntime.write.graphs import write_graphs
from tests.targets.conftest import Built

HEAD = "language_model.lm_head.weight.T"


def rounded(bundle: Built) -> Built:
    write_graphs(bundle.graphs, [contract.DECODER], "cpu", "int8", bundle.engine_folder)
    return bundle


def decoder(bundle: Built) -> onnx.ModelProto:
    return onnx.load(bundle.engine_folder / "decoder.onnx", load_external_data=False)


def prompt_logits(bundle: Built) -> np.ndarray:
    sizes = bundle.spec.sizes
    embeds_1SE = np.random.default_rng(0).standard_normal((1, 6, sizes.hidden)).astype(np.float32)
    opened = OnnxRuntimeTarget().open(bundle.engine_folder, bundle.spec, "cpu").decoder(1, 8)
    places = np.arange(6)[None], np.array([0]), np.array([6]), np.arange(6)[None]
    return opened.step(embeds_1SE, *places)[0]


def test_the_head_is_rounded_to_nearest_in_groups_of_inputs(copy):
    weight = next(each for each in decoder(copy).graph.initializer if each.name == HEAD)
    place = {each.key: each.value for each in weight.external_data}
    exact_EV = np.memmap(copy.graphs / "decoder.data", np.float32, "r", int(place["offset"]), tuple(weight.dims))
    model = decoder(rounded(copy))
    assert HEAD not in {each.name for each in model.graph.initializer}
    (node,) = [each for each in model.graph.node if each.name == f"{HEAD}/DequantizeLinear"]
    tensors = {each.name: each for each in model.graph.initializer}
    values = [onnx.numpy_helper.to_array(tensors[name], str(copy.folder)) for name in node.input]
    block = next(each.i for each in node.attribute if each.name == "block_size")
    rounded_EV = values[0] * np.repeat(values[1], block, axis=0)
    assert (np.abs(rounded_EV - exact_EV) <= np.repeat(values[1], block, axis=0) * 0.5001).all()
    assert np.abs(values[0]).reshape(-1, block, exact_EV.shape[1]).max(axis=1).min() == 127


def test_onnx_runtime_multiplies_8_bits_with_8_bits(copy, tmp_path):
    rounded(copy)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    entries = OnnxRuntimeTarget().engine_document(copy.engine_folder).options["session_entries"]
    for name, value in {**entries[contract.DECODER], WEIGHTS_FOLDER: str(copy.folder)}.items():
        options.add_session_config_entry(name, value)
    ort.InferenceSession((copy.engine_folder / "decoder.onnx").read_bytes(), options, ["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    (node,) = [each for each in graph.node if contract.LOGITS in each.output]
    attributes = {each.name: each.i for each in node.attribute}
    assert (node.op_type, attributes["bits"], attributes["accuracy_level"]) == ("MatMulNBits", 8, 4)


def test_logits_are_those_of_the_float_head_up_to_rounding(copy):
    exact = prompt_logits(copy)
    error = prompt_logits(rounded(copy)) - exact
    assert 0 < np.linalg.norm(error) < 0.02 * np.linalg.norm(exact)


def test_the_file_is_as_large_as_planned_and_the_same_every_time(copy):
    file = rounded(copy).engine_folder / HEAD_DATA
    first = file.read_bytes()
    assert len(first) == head_bytes(copy.spec.sizes.hidden, copy.spec.sizes.vocab)
    assert rounded(copy).engine_folder.joinpath(HEAD_DATA).read_bytes() == first


@pytest.mark.parametrize("change", ["quantized", "undivided"])
def test_a_head_that_cannot_be_rounded_stays(copy, change, monkeypatch):
    if change == "undivided":
        monkeypatch.setattr("r1v_export.targets.onnxruntime.write.int8_head.group_size", lambda hidden: None)
    else:
        path = copy.graphs / "decoder.onnx"
        model = onnx.load(path, load_external_data=False)
        made = onnx.helper.make_node("Identity", [HEAD], ["made"], name="made")
        head = next(node for node in model.graph.node if HEAD in node.input)
        head.input[1] = "made"
        model.graph.node.insert(0, made)
        path.write_bytes(model.SerializeToString())
    rounded(copy)
    assert not (copy.engine_folder / HEAD_DATA).exists()
    assert HEAD in {each.name for each in decoder(copy).graph.initializer}
