"""Graphs compiled by OpenVINO, on weights that stay in the bundle's files, mapped into memory."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from r1v_export import contract
from r1v_export.count import Count
from r1v_export.cpus import has_bfloat16_tiles, saturates_int8_products, thread_count
from r1v_export.errors import BundleError, R1VError
from r1v_export.files import open_regular
from r1v_export.log_event import log_event
from r1v_export.memory import most_bytes
from r1v_export.opening import Begun
from r1v_export.progress import size
from r1v_export.targets.graph_errors import shortened
from r1v_export.targets.openvino.doctor import has_bfloat16
from r1v_export.targets.openvino.engine_file import LEAST_GROUP, REBUILD, EngineFile, GraphWeights, Weight
from r1v_export.targets.openvino.library import ov
from r1v_export.targets.openvino.runtime import paged_attention
from r1v_export.targets.openvino.runtime.cut_head import HEAD_INPUT, cut_head
from r1v_export.targets.openvino.runtime.held_weights import HeldWeights, forget_pages
from r1v_export.targets.openvino.runtime.kept_weights import entry_of, keeping
from r1v_export.targets.openvino.runtime.merged_products import merge_small_products
from r1v_export.targets.openvino.runtime.paged_attention import Attention
from r1v_export.targets.openvino.runtime.rounded_activations import let_what_follows_products_be_bfloat16
from r1v_export.targets.openvino.runtime.rounded_weights import Multiply, multiply_in_bfloat16, multiply_in_int8
from r1v_export.targets.openvino.runtime.run import naming
from r1v_export.targets.openvino.runtime.tower_attention import attend_by_products
from r1v_export.targets.openvino.signal_stack import kept_signal_stack

_LOG = logging.getLogger(__name__)
_DEVICE = "CPU"
_PART_OF_MEMORY = 16
"""Where a second graph holds the weights of a decoder's layers, all of its weights, as they lie in their files, are no
more than a sixteenth of it. A process that decodes one sequence, and several, has a third such graph."""


class Compiled(NamedTuple):
    """A graph that OpenVINO compiled."""

    model: ov.CompiledModel
    weights: HeldWeights
    """The mapped files, and matrices that were rounded or merged."""
    head: ov.Model | None = None
    """What a decoder was cut before, not compiled, see `compile_head`."""


@kept_signal_stack()
def compile_graph(
    engine: Path,
    bundle: Path,
    graph: str,
    file: EngineFile,
    threads: int | None,
    outputs: list[str] | None = None,
    *,
    int8: bool = False,
    keep: bool = False,
    attention: Attention | None = None,
    one_token: bool = False,
    begun: Begun = lambda: None,
) -> Compiled:
    """Compile one graph of an engine for the CPU.

    Args:
        engine: folder with `<graph>.onnx`.
        bundle: what the weights' paths are relative to.
        file: of `read_engine_file`.
        threads: that one operator may use; `thread_count()` if None.
        outputs: values inside the graph to add to its outputs.
        int8: round float32 weights of products, and their inputs, to 8 bits.
        keep: keep many rounded weights on disk, see `kept_weights`.
        attention: of a decoder over a pool of blocks, which then ends before its head, see `cut_head`.
        one_token: let that decoder take one new token of one row, and nothing else.
        begun: called as soon as all else is read and OpenVINO compiles, which needs no lock of Python's.

    Raises:
        BundleError: the graph or its weights are missing, or OpenVINO refuses them.
    """
    path = engine / f"{graph}.onnx"
    properties = session_properties(graph, file, threads, attention)
    with _refusals(path):
        model, products = _read(path, attention), properties["INFERENCE_PRECISION_HINT"]
        if graph == contract.VISION:
            attend_by_products(model, by_tiles=by_tiles(products))
        if outputs:
            model.add_outputs(outputs)
        multiply: Multiply | None = multiply_in_int8 if int8 else multiply_in_bfloat16 if products == "bf16" else None
        weights = _filled(model, path, bundle, file.weights.get(graph, {}), multiply, keep=keep)
        head = cut_head(model) if attention else None
        if one_token:
            paged_attention.take_one_token(model)
        if int8:
            let_what_follows_products_be_bfloat16(model)
        if graph == contract.DECODER and file.steps_in_8_bits and products == "f32":
            # The graph for prompts, in bfloat16, gains nothing, and OpenVINO fuses some of its products itself.
            weights.arrays += merge_small_products(model)
        begun()
        compiled = ov.Core().compile_model(model, _DEVICE, properties)
        weights.forget()
    message = "%(graph)s: compiled for OpenVINO, products in %(products)s, %(threads)s"
    used, count = str(compiled.get_property("INFERENCE_PRECISION_HINT")), properties["INFERENCE_NUM_THREADS"]
    used += f", attention in {attention.pools}" if attention else ""
    log_event(_LOG, logging.INFO, message, graph=path, products=used, threads=Count(count, "thread"))
    return Compiled(compiled, weights, head)


@kept_signal_stack()
def compile_head(
    layers: Compiled, engine: Path, file: EngineFile, threads: int | None, attention: Attention
) -> Compiled:
    """Compile what a decoder was cut before, and pack its weights.

    What is packed is there twice meanwhile, and a head is the largest product: so before the layers are packed.

    Args:
        layers: with the head.
        engine: folder of the decoder's graph.
        file, threads, attention: as its layers were compiled with.

    Raises:
        BundleError: OpenVINO refuses it.
        GraphError: OpenVINO fails to run it.
    """
    properties, weights = session_properties(contract.DECODER, file, threads, attention), layers.weights.arrays
    with _refusals(engine / f"{contract.DECODER}.onnx"):
        head = Compiled(ov.Core().compile_model(layers.head, _DEVICE, properties), HeldWeights(weights))
        hidden = head.model.input(HEAD_INPUT).get_partial_shape()[2].get_length()
        inputs = {HEAD_INPUT: np.zeros((1, 1, hidden), np.float32)}
        with head.weights.packing(), naming(contract.DECODER, inputs):
            head.model.create_infer_request().infer(inputs)
    return head


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """
    Raises:
        BundleError: a graph cannot be read, or OpenVINO refuses it, in the block.
    """
    try:
        yield
    except R1VError:
        raise
    except OSError as error:
        raise BundleError("An OpenVINO engine cannot be read.", where=path, found=error, fix=REBUILD) from error
    except Exception as error:  # OpenVINO raises RuntimeError and its own classes.
        raise BundleError(
            "OpenVINO refuses an engine.",
            where=path,
            found=f"openvino {ov.__version__}: {shortened(error)}",
            fix="run `r1v-export verify`; if the bundle is sound, build it again with this openvino",
        ) from error


def _read(path: Path, attention: Attention | None) -> ov.Model:
    core = ov.Core()
    if attention is None:
        return core.read_model(path)
    core.add_extension(paged_attention.extension(attention))
    model = core.read_model(path)
    paged_attention.let_pools_have_any_type(model)
    return model


def session_properties(
    graph: str, file: EngineFile, threads: int | None, attention: Attention | None = None
) -> Mapping[str, Any]:
    """What a graph of an engine is compiled with."""
    group = file.input_groups.get(graph, LEAST_GROUP)
    return {
        **(attention.properties if attention else {"INFERENCE_PRECISION_HINT": products_of(graph, file)}),
        "INFERENCE_NUM_THREADS": threads or thread_count().count,
        "NUM_STREAMS": 1,
        # Inputs of integer weights that share a scale where they are rounded to 8 bits; OpenVINO's own default is 32.
        # It rounds none so where products are in bfloat16.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group if file.options.int4_inputs == "int8" else 0,
        # Else quantized weights and inputs are multiplied as integers, whose sums overflow there without a word. Then
        # the same values are multiplied in float32.
        **({"LP_TRANSFORMS_MODE": False} if saturates_int8_products() else {}),
    }


def products_of(graph: str, file: EngineFile) -> str:
    """What products of a graph round their operands to that are not quantized: f32 or bf16.

    The embedding table is always looked up as it is: rounding it gains nothing. Where the CPU has no bfloat16 products
    it is float32, which rounds less than the build allowed for.
    """
    rounds = file.options.matmul == "bfloat16" and graph != contract.EMBED and has_bfloat16()
    return "bf16" if rounds else "f32"


def attention_of(file: EngineFile) -> Attention:
    """How the decoder over a pool of blocks attends, and what else it rounds to.

    With inputs in 8 bits that is attention alone, and only where the CPU multiplies tiles of bfloat16: 512 tokens
    behind 3,584 then take 0.7 of the time, and without tiles 1.1.
    """
    products = products_of(contract.DECODER, file)
    if not file.steps_in_8_bits:
        return Attention(products, products)
    return Attention("bf16" if by_tiles(products) else "f32", "f32")


def full_rows(attention: Attention) -> int:
    """What numbers of rows that a graph's products take least time for each are multiples of; 1 for any number.

    With tiles of bfloat16 OpenVINO takes as long for 368 rows of 4-bit weights as for 512, and 0.7 of that for 384
    (0.5B); a product of 5,120 columns takes 1.2 times as long for 368 as for 384.
    """
    return 128 if by_tiles(attention.products) else 1


def by_tiles(products: str) -> bool:
    """Whether products of this precision, f32 or bf16, are computed by tiles."""
    return products == "bf16" and has_bfloat16_tiles()


def attention_of_prompts(file: EngineFile) -> Attention | None:
    """How another graph of the same decoder does, which computes prompts on the same pools; None without one.

    With tiles of bfloat16 it takes 0.65 of the time that inputs in 8 bits do for 512 tokens, and 1.3 times as long for
    one. Each graph holds the weights as it multiplies them, so it is there where they are small against the memory.
    """
    weights_bytes = file.weights_bytes(contract.DECODER)
    if not file.steps_in_8_bits or attention_of(file).pools == "f32":
        return None
    if weights_bytes * _PART_OF_MEMORY > (memory_bytes := most_bytes()):
        message = "prompts have no graph of their own: %(weights)s of weights, and %(memory)s of memory"
        log_event(_LOG, logging.INFO, message, weights=size(weights_bytes), memory=size(memory_bytes))
        return None
    return Attention("bf16", "bf16")


def _filled(
    model: ov.Model, graph: Path, bundle: Path, weights: GraphWeights, multiply: Multiply | None, *, keep: bool
) -> HeldWeights:
    """`fill_weights`, with what is rounded from the file in which it is kept, if it is to be."""
    if multiply is None:
        return fill_weights(model, weights, bundle, None)
    products, bytes_each = ("int8", 1) if multiply is multiply_in_int8 else ("bfloat16", 2)
    entry = entry_of(graph, bundle, weights, products, bytes_each) if keep else None
    with keeping(entry) as kept:
        return fill_weights(model, weights, bundle, partial(multiply, keep=kept))


def fill_weights(model: ov.Model, weights: GraphWeights, bundle: Path, multiply: Multiply | None) -> HeldWeights:
    """Replace a graph's inputs that stand for weights by constants: the mapped files themselves, or what float32
    matrices are rounded to.

    Args:
        multiply: rounds a matrix, as the functions of `rounded_weights` do; None leaves all as they are.

    Returns:
        What the constants are in, to be kept as long as the model and what is compiled of it.

    Raises:
        BundleError: a file is too short for its weights, or the graph has no such input.
        OSError: a file is missing, or no regular file.
    """
    files: dict[str, np.ndarray] = {}
    made = []
    inputs = {parameter.friendly_name: parameter for parameter in model.get_parameters()}
    for name, weight in weights.items():
        if name not in inputs:
            raise BundleError(
                "An OpenVINO engine's graph lacks one of its weights.", where=bundle, expected=name, fix=REBUILD
            )
        if weight.file not in files:
            files[weight.file] = _mapped(bundle / weight.file)
        content, parameter = _part(files[weight.file], weight, bundle), inputs[name]
        matrix = None
        if multiply is not None and weight.type == "f32":
            matrix = multiply(parameter, content.view(np.float32).reshape(weight.shape))
        if matrix is None:
            tensor = ov.Tensor(content, ov.Shape(weight.shape), getattr(ov.Type, weight.type))
            constant = ov.op.Constant(tensor, shared_memory=True)
            constant.friendly_name = name
            parameter.output(0).replace(constant.output(0))
        else:
            made.append(matrix)
            forget_pages(files[weight.file])
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return HeldWeights([*files.values(), *made])


def _part(content: np.ndarray, weight: Weight, bundle: Path) -> np.ndarray:
    """A weight's bytes in those of its file."""
    end = weight.offset + weight.size_bytes
    if end > len(content):
        raise BundleError(
            "A file of weights is too short.",
            where=bundle / weight.file,
            expected=str(Count(end, "byte")),
            found=str(Count(len(content), "byte")),
            fix=REBUILD,
        )
    return content[weight.offset : end]


def _mapped(path: Path) -> np.ndarray:
    """A file's bytes, uint8; pages that nobody changes are the file's own."""
    with open_regular(path) as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=np.uint8)
