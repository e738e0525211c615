"""How sessions on the engine's graphs are opened, and run, beyond ONNX Runtime's defaults: for our own runtime, and as
data for others. Needs no ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from r1v_export import contract
from r1v_export.errors import BundleError
from r1v_export.files import GRAPH_LIMIT_BYTES, read_regular_bytes
from r1v_export.targets.onnxruntime.graph_message import FLOAT8E4M3FN, FLOAT16, INT4, INT8, UINT4, Model, Tensor

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
INT4_INPUTS = "r1v.int4_inputs"
"""Metadata of an engine's graph: `OnnxRuntimeConfig.int4_inputs` of its build."""
STOPS_AT_LENGTH = "r1v.attention_stops_at_length"
"""Metadata of an engine's decoder graph: `1` where no layer reads or writes slots of the cache behind a row's length,
so that a cache may have more than are asked for."""
INTEGER_PRODUCTS = "r1v.integer_products"
"""Metadata of an engine's graph: `1` where INT8 values are multiplied as integers."""
STOPS_AT_LENGTH_OPTION = STOPS_AT_LENGTH.removeprefix("r1v.")
_INT4_ARITHMETIC = "session.qdq_matmulnbits_accuracy_level"
_ACCURACY_LEVELS = {"exact": "1", "int8": "4", "float32": "1"}
"""Of MatMulNBits. `float32` is how graphs of earlier versions have `exact`."""
_DEQUANTIZE_AT_LOAD = "session.disable_quant_qdq"
EXACT_INT8 = "session.x64quantprecision"
"""Else x86 CPUs without VNNI add products of 8-bit integers in pairs in 16 bits, which overflows without a word. No
effect on others."""
PARALLEL_PREPACK = "session.prepack.enable_parallel"
"""Whether weights are brought into their kernels' layouts on all threads. By default one does so while the others wait,
and each weight is given up before the next; all threads give up none before all are done."""
NO_SPINNING_BETWEEN_RUNS = "session.force_spinning_stop"
"""Whether threads stop waiting by spinning when a run ends. Also named in engines/backends/onnxruntime/session.cpp."""
CHANGE_NO_RESULT = (PARALLEL_PREPACK, NO_SPINNING_BETWEEN_RUNS)
"""Entries that say how a session is opened or waits, not what it computes."""
MOST_BY_ONE_THREAD_BYTES = 512 << 20
"""Of weights that one thread prepares while another one reads the tokenizer. In memory that saves what they take in
files; in time it costs little where the tokenizer is large, else up to half of the preparation."""
_FP8 = {FLOAT8E4M3FN}
_FOUR_BITS = {INT4, UINT4}
_INT8_IN_FLOAT16 = {INT8, FLOAT16}

TOKENS_AT_ONCE = 256
"""Image tokens whose tiles a CPU encodes together: activations of more do not fit into its caches. InternViT's
tiles, of 256 tokens each, are encoded one by one: 4 % faster than four together. Smaller ones gain from batching."""

EMBED_THREADS = 1
"""Of the embed graph's session: a look-up gains nothing from more."""

AVAILABLE_CORES = "available_cores"
"""Of the other sessions, as data: what `cpus.thread_count` counts."""

PROMPT_ROWS = 1
"""Rows of a batch that one run of the decoder takes with several new tokens each, see `OnnxRuntimeDecoder`."""


def engine_options(engine: Path, files: Mapping[str, str]) -> dict[str, JsonValue]:
    """The options in `pipeline.json`, see docs/bundle.md.

    Args:
        engine: folder with the lowered graphs.
        files: graph -> file in it.

    Raises:
        BundleError: a graph cannot be read.
    """
    entries: dict[str, JsonValue] = {}
    stops_at_length = False
    for name, file in files.items():
        try:
            model = Model(read_regular_bytes(engine / file, GRAPH_LIMIT_BYTES))
            entries[name] = {**quantization_entries(model)}
            stops_at_length |= any(entry.key == STOPS_AT_LENGTH for entry in model.metadata_props)
        except Exception as error:  # of the file system, and of what is no graph
            fix = "build the bundle again"
            raise BundleError("An engine cannot be read.", where=engine / file, found=error, fix=fix) from error
    return {
        "weights_root": "../..",
        "weights_root_entry": WEIGHTS_FOLDER,
        "session_entries": entries,
        "threads": {name: EMBED_THREADS if name == contract.EMBED else AVAILABLE_CORES for name in files},
        "image_tokens_per_run": TOKENS_AT_ONCE,
        "rows_per_prompt_run": PROMPT_ROWS,
        "cache_in_place": True,
        STOPS_AT_LENGTH_OPTION: stops_at_length,
    }


def quantization_entries(model: Model) -> dict[str, str]:
    """How this graph's quantized weights are computed with, as entries of a session's configuration.

    4-bit weights stay packed, in a fused kernel. There is none for FP8 weights: they are dequantized once, at load, and
    not at every step, which takes sixteen times as long; ONNX Runtime does so only where it fuses nothing quantized.
    In float16 it cannot fuse INT8: it takes results to be of the scales' type, float32, and refuses its own graph.

    Weights of a file are pages that the kernel gives back; what ONNX Runtime widens to float32 is memory, and would be
    there twice if all threads brought it into its layouts. Widened are FP8, and on a CPU float16.

    """
    kinds = {weight.data_type for weight in model.graph.initializer}
    inputs = next((entry.value for entry in model.metadata_props if entry.key == INT4_INPUTS), "exact")
    entries = {_INT4_ARITHMETIC: _ACCURACY_LEVELS[inputs]}
    dequantized = kinds & _FP8 and not kinds & _FOUR_BITS
    if dequantized or kinds >= _INT8_IN_FLOAT16:
        entries[_DEQUANTIZE_AT_LOAD] = "1"
    if any(entry.key == INTEGER_PRODUCTS for entry in model.metadata_props):
        entries[EXACT_INT8] = "1"
    if dequantized or FLOAT16 in kinds:
        entries[PARALLEL_PREPACK] = "0"
    return entries


def four_bit_bytes(model: Model) -> int:
    """Of a graph's 4-bit weights in files of their own."""
    return sum(_external_bytes(weight) for weight in model.graph.initializer if weight.data_type in _FOUR_BITS)


def external_bytes(model: Model) -> int:
    """Of all of a graph's weights in files of their own."""
    return sum(map(_external_bytes, model.graph.initializer))


def _external_bytes(weight: Tensor) -> int:
    return sum(int(entry.value) for entry in weight.external_data if entry.key == "length")
