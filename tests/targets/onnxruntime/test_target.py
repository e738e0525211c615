from __future__ import annotations

import onnx
import onnxruntime
import pytest

from r1v_export.config import BuildConfig
from r1v_export.contract import GRAPHS, graph_contracts
from r1v_export.cpus import thread_count, use_threads
from r1v_export.errors import BundleError, CapabilityError, GraphError
from r1v_export.quantization.groups import LM_HEAD_LINEAR
from r1v_export.quantization.recipe import RoundToNearest, Scheme
from r1v_export.targets.onnxruntime.head_file import head_bytes
from r1v_export.targets.onnxruntime.session_options import AVAILABLE_CORES
from r1v_export.targets.onnxruntime.target import OnnxRuntimeTarget
from tests.tiny_models import tiny_spec

EXACT_INPUTS = {"targets": {"onnxruntime": {"int4_inputs": "exact"}}}
BFLOAT16_IMAGES = {"targets": {"onnxruntime": {"image_products": "bfloat16"}}}
SCHEME = Scheme(weights=RoundToNearest(type="int4", granularity="group", group_size=32, algorithm="rtn"))


def test_lowered_graphs_keep_the_contracts_boundary(built):
    for name, contract in graph_contracts(built.spec.sizes).items():
        graph = onnx.load(built.engine_folder / f"{name}.onnx", load_external_data=False).graph
        assert [value.name for value in graph.input] == [tensor.name for tensor in contract.inputs]
        assert [value.name for value in graph.output] == [tensor.name for tensor in contract.outputs]


def test_the_engine_copies_no_weights(built):
    files = [path for path in built.engine_folder.rglob("*") if path.is_file()]
    of_images = ["engine.json", "projector.onnx", "vision.onnx"]
    assert sorted(path.name for path in files) == sorted([*(f"{name}.onnx" for name in GRAPHS), *of_images])
    engine_bytes = sum(path.stat().st_size for path in files)
    weight_bytes = sum(path.stat().st_size for path in built.graphs.glob("*.data"))
    assert engine_bytes < weight_bytes / 4


@pytest.mark.parametrize(
    ("fields", "linear", "scheme", "encoders"),
    [
        ({}, None, None, ("openvino",)),
        ({"device": "cuda"}, None, None, ()),
        ({"precision": "fp16"}, None, None, ()),
        ({"precision": "int4"}, "language_model.layers.0", ("int4", None), ("openvino", "onnxruntime")),
        ({"precision": "int4"} | EXACT_INPUTS, "language_model.layers.0", ("int4", None), ("openvino",)),
        ({"precision": "int4"} | BFLOAT16_IMAGES, "language_model.layers.0", ("int4", None), ("openvino",)),
        ({"precision": "int4"}, "vision_model.encoder.layers.0", ("int4", None), ()),
        ({"precision": "int8"}, "vision_model.encoder.layers.0", ("int8", "int8"), ("openvino",)),
        ({"precision": "fp8"}, "vision_model.encoder.layers.0", ("fp8", "fp8"), ()),
        ({"precision": "fp8"}, "language_model.layers.0", ("fp8", "fp8"), ("openvino",)),
    ],
)
def test_images_have_a_faster_engine_where_one_was_measured(fields, linear, scheme, encoders):
    schemes = {}
    if linear is not None:
        weights, inputs = scheme
        sizes = {"granularity": "group", "group_size": 32} if weights == "int4" else {"granularity": "channel"}
        schemes[linear] = Scheme(
            weights={"type": weights, "algorithm": "rtn", **sizes},
            inputs=inputs and {"type": inputs, "mode": "static"},
        )
    assert OnnxRuntimeTarget().image_targets(BuildConfig(**fields), schemes) == encoders


@pytest.mark.parametrize(
    ("fields", "linears", "expected"),
    [
        ({}, {}, None),
        ({"precision": "int4"}, {"layers.0": "int4"}, "openvino"),
        ({"precision": "int4"}, {"layers.0": "int4", "layers.1": "uint4"}, "openvino"),
        ({"precision": "int4"}, {"layers.0": "int4", "layers.1": "int8"}, None),
        ({"precision": "int4"}, {}, None),
        ({"precision": "int4", "device": "cuda"}, {"layers.0": "int4"}, None),
        ({"precision": "int4"} | EXACT_INPUTS, {"layers.0": "int4"}, "openvino"),
        ({"precision": "int8"}, {"layers.0": "int8"}, None),
    ],
)
def test_a_decoder_in_4_bits_has_a_faster_engine(fields, linears, expected):
    schemes = {}
    for name, weights in linears.items():
        sizes = {"granularity": "channel"} if weights == "int8" else {"granularity": "group", "group_size": 32}
        scheme = Scheme(weights={"type": weights, "algorithm": "rtn", **sizes})
        schemes[f"language_model.model.{name}.mlp.up_proj"] = scheme
    assert OnnxRuntimeTarget().decoder_target(BuildConfig(**fields), schemes, kv_cache=None) == expected
    assert OnnxRuntimeTarget().decoder_target(BuildConfig(**fields), schemes, kv_cache="int8") is None


def test_weights_are_found_by_paths_inside_the_bundle(built):
    for name in GRAPHS:
        graph = onnx.load(built.engine_folder / f"{name}.onnx", load_external_data=False).graph
        locations = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
        assert locations <= {f"graphs/{name}.data"}


def test_building_again_gives_the_same_bytes(built, tmp_path):
    built.build_engine(tmp_path)
    for name in GRAPHS:
        file = f"{name}.onnx"
        assert (tmp_path / file).read_bytes() == (built.engine_folder / file).read_bytes()


def test_a_moved_bundle_still_opens(copy):
    moved = copy.folder.rename(copy.folder.with_name("elsewhere"))
    engine = OnnxRuntimeTarget().open(moved / "engines" / "onnxruntime", copy.spec, "cpu")
    assert engine.decoder(1, 8).capacity == 8


def test_sessions_have_the_threads_that_the_engine_document_says(r1v):
    threads = OnnxRuntimeTarget().engine_document(r1v.engine_folder).options["threads"]
    available = 1 + thread_count().count
    use_threads(available)
    try:
        engine = r1v.open()
        sessions = {name: getattr(engine, f"_{name}") for name in GRAPHS}
    finally:
        use_threads(None)
    found = {name: session.get_session_options().intra_op_num_threads for name, session in sessions.items()}
    assert found == {name: available if count == AVAILABLE_CORES else count for name, count in threads.items()}


def test_a_missing_graph_is_named_before_anything_runs(copy):
    (copy.engine_folder / "embed.onnx").unlink()
    with pytest.raises(BundleError, match=r"no embed\.onnx"):
        copy.open()


def test_missing_weights_and_damaged_graphs_are_bundle_errors(copy):
    (copy.graphs / "decoder.data").unlink()
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        copy.open().decoder(1, 8)
    (copy.engine_folder / "decoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        copy.open().decoder(1, 8)


def test_a_bfloat16_graph_is_refused_with_the_precision_to_take(copy):
    path = copy.graphs / "vision.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CapabilityError, match="--precision fp32") as error:
        copy.build_engine(copy.engine_folder)
    assert error.value.found == "bfloat16"


def test_a_graph_of_another_shape_is_refused_by_name(copy):
    path = copy.graphs / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    scatter = next(node for node in model.graph.node if node.op_type == "TensorScatter")
    scatter.op_type = "ScatterND"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match="TensorScatter") as error:
        copy.build_engine(copy.engine_folder)
    assert error.value.where == "decoder"


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="has CUDA")
def test_cuda_without_a_cuda_build_of_onnxruntime_is_a_missing_capability(r1v):
    for attempt in (
        lambda: OnnxRuntimeTarget().check(BuildConfig(device="cuda")),
        lambda: OnnxRuntimeTarget().open(r1v.engine_folder, r1v.spec, "cuda"),
    ):
        with pytest.raises(CapabilityError, match="CUDAExecutionProvider"):
            attempt()


@pytest.mark.parametrize(("given", "rounds"), [("exact", False), ("float32", False), ("int8", True)])
def test_inputs_of_4_bit_weights_are_rounded_where_the_build_says_so(given, rounds):
    config = BuildConfig(precision="int4", targets={"onnxruntime": {"int4_inputs": given}})
    assert OnnxRuntimeTarget().numerics(config, tiny_spec()).rounds_inputs == rounds


@pytest.mark.parametrize(("schemes", "written"), [({}, True), ({LM_HEAD_LINEAR: SCHEME}, False)])
def test_a_head_that_the_recipe_leaves_alone_is_planned_in_8_bits(schemes, written):
    spec = tiny_spec()
    config = BuildConfig(precision="int4")
    assert OnnxRuntimeTarget().numerics(config, spec).rounds_head
    float_images = BuildConfig(precision="int4", **BFLOAT16_IMAGES)
    planned = OnnxRuntimeTarget().size_bytes(float_images, spec, schemes)
    assert planned == (head_bytes(spec.sizes.hidden, spec.sizes.vocab) if written else 0)
    exact = BuildConfig(precision="int4", **EXACT_INPUTS)
    assert OnnxRuntimeTarget().size_bytes(exact, spec, schemes) == 0
    assert OnnxRuntimeTarget().size_bytes(BuildConfig(precision="fp32"), spec, {}) == 0


@pytest.mark.parametrize(
    ("precision", "device", "rounds"),
    [("int4", "cpu", True), ("int4", "cuda", False), ("fp8", "cpu", False), ("fp32", "cpu", False)],
)
def test_inputs_are_rounded_by_default_where_a_cpu_multiplies_4_bit_weights(precision, device, rounds):
    config = BuildConfig(precision=precision, device=device)
    assert OnnxRuntimeTarget().numerics(config, tiny_spec()).rounds_inputs == rounds
