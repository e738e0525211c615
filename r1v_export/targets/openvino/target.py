"""The target `openvino`: a bundle's standard graphs, lowered where OpenVINO needs it, on the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from r1v_export import contract
from r1v_export.config import BuildConfig, Compute, Device, ImageProducts
from r1v_export.cpus import has_bfloat16_products, has_bfloat16_tiles
from r1v_export.errors import BundleError, CapabilityError
from r1v_export.manifest import MANIFEST
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.targets import registry
from r1v_export.targets.int4_inputs import Int4Inputs, chosen_int4_inputs, require_int4_weights
from r1v_export.targets.interface import BuildInputs, NumericsSpec, Readiness, Target
from r1v_export.targets.openvino import doctor
from r1v_export.targets.openvino.boundary import PROMPT_TOKENS
from r1v_export.targets.openvino.config import OpenVinoConfig
from r1v_export.targets.openvino.engine_file import ENGINE_FILE, REBUILD, read_engine_file

if TYPE_CHECKING:
    import onnx_ir as ir

    from r1v_export.quantization.recipe import Scheme
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine


class OpenVinoTarget(Target):
    """Writes `<graph>.onnx` for each of the contract's graphs, and `engine.json`; weights are those of the graphs.

    Inputs and outputs are float32; products round their operands to bfloat16 where the CPU has instructions for it,
    unless the build says otherwise.
    """

    name = "openvino"
    graphs = contract.GRAPHS
    config_class = OpenVinoConfig
    tools = doctor.DISTRIBUTIONS
    packed_in_memory = True
    image_compute = "bfloat16"
    prompt_tokens = PROMPT_TOKENS

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def runtime_extras(self, device: Device) -> tuple[str, ...]:
        return (self.name,)

    def quantized_compute(self, device: Device) -> Compute:
        return "float32"

    def check(self, config: BuildConfig) -> None:
        require_cpu(config.device)
        doctor.require()
        options = config.options(self.name, OpenVinoConfig)
        require_int4_weights(options.int4_inputs, config)
        require_products(options)
        from r1v_export.targets.openvino.write.graphs import COMPUTE_TYPES, no_products

        compute = registry.compute_dtype(config)
        if compute not in COMPUTE_TYPES:
            raise no_products(compute)

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        """Weights are the graphs' own."""
        return 0

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        options = config.options(self.name, OpenVinoConfig)
        rounds = chosen_int4_inputs(options.int4_inputs, config) == "int8"
        return NumericsSpec(options.matmul, rounds)

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        from r1v_export.targets.openvino.write.graphs import write_graphs

        options = inputs.config.options(self.name, OpenVinoConfig)
        chosen = {"int4_inputs": chosen_int4_inputs(options.int4_inputs, inputs.config)}
        write_graphs(inputs.graphs, self.graphs, options.model_copy(update=chosen), out)

    def missing(self, device: Device) -> str | None:
        try:
            require_cpu(device)
            doctor.require()
        except CapabilityError as error:
            return error.what if error.found is None else f"{error.found}"
        return None

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> OpenVinoEngine:
        require_cpu(device)
        return _open(engine, engine.absolute().parents[1], self.graphs, spec)

    def write_images(self, graphs: Path, out: Path, products: tuple[ImageProducts, ...]) -> None:
        from r1v_export.targets.openvino.write.graphs import write_graphs

        write_graphs(graphs, contract.IMAGE_GRAPHS, OpenVinoConfig(matmul="bfloat16"), out, image_products=products)

    def image_products(self, engine: Path) -> tuple[ImageProducts, ...]:
        return read_engine_file(engine).image_products

    def why_not_images(self, products: ImageProducts) -> str | None:
        if find_spec("openvino") is None:
            return "openvino is not installed"
        if not has_bfloat16_products():
            return "this CPU has no bfloat16 products"
        return None

    def write_decoder(self, model: ir.Model, graphs: Path, int4_inputs: Int4Inputs, out: Path) -> None:
        """Inputs that 4-bit weights multiply as they are, are rounded to bfloat16: in float32 a step of several rows
        takes twice as long. Where they are in 8 bits, `runtime.model.attention_of` says what is in bfloat16."""
        from r1v_export.targets.openvino.write.graphs import write_paged_decoder

        write_paged_decoder(model, graphs, OpenVinoConfig(matmul="bfloat16", int4_inputs=int4_inputs), out)

    def decoder_compute(self, engine: Path) -> Compute:
        file = read_engine_file(engine)
        return "float32" if file.steps_in_8_bits and not has_bfloat16_tiles() else file.options.matmul

    def why_not_decoder(self) -> str | None:
        return self.why_not_images("bfloat16")

    def decodes_with(self) -> str:
        return "tiles of bfloat16" if has_bfloat16_tiles() else "no tiles of bfloat16"

    def open_decoder(self, engine: Path, bundle: Path, spec: ModelSpec) -> OpenVinoEngine:
        opened = _open(engine, bundle.absolute(), [contract.DECODER], spec)
        from r1v_export.targets.openvino.runtime.paged_attention import require_paged_attention

        for attention in filter(None, (opened.attention, opened.attention_of_prompts)):
            require_paged_attention(spec.sizes.kv_heads, spec.sizes.head_dim, attention)
        return opened

    def open_images(self, engine: Path, bundle: Path, spec: ModelSpec, products: ImageProducts) -> OpenVinoEngine:
        return _open(engine, bundle.absolute(), contract.IMAGE_GRAPHS, spec, products)


def _open(
    engine: Path, bundle: Path, graphs: Iterable[str], spec: ModelSpec, image_products: ImageProducts = "bfloat16"
) -> OpenVinoEngine:
    """The engine in a folder that has to have some graphs, on the weights of a bundle."""
    doctor.require()
    files = [ENGINE_FILE, *(f"{name}.onnx" for name in graphs)]
    missing = [name for name in files if not (engine / name).is_file()]
    if missing:
        raise BundleError(
            "An OpenVINO engine is incomplete.",
            where=engine,
            expected=", ".join(files),
            found=f"no {', no '.join(missing)}",
            fix=REBUILD,
        )
    from r1v_export.targets.openvino.runtime.engine import OpenVinoEngine

    finished = (bundle / MANIFEST).is_file()  # a gate opens what is still being built, once
    return OpenVinoEngine(engine, bundle, spec.sizes, image_products=image_products, keep=finished)


def require_cpu(device: Device) -> None:
    """Check that the device is one that engines of this target run on.

    Raises:
        CapabilityError: it is not.
    """
    if device != "cpu":
        raise CapabilityError(
            "The target openvino runs on the CPU.", expected="cpu", found=device, fix="use --device cpu"
        )


def require_products(options: OpenVinoConfig) -> None:
    """Check that this CPU has the products that the build asks for, as its gate could not judge them otherwise.

    Raises:
        CapabilityError: it has none in bfloat16.
    """
    if options.matmul == "bfloat16" and not doctor.has_bfloat16():
        raise CapabilityError(
            "This CPU has no bfloat16 products, which a build for openvino is to judge.",
            where="targets.openvino.matmul",
            expected="avx512_bf16 or amx_bf16",
            fix="set matmul: float32 in the build file, or build on another machine",
        )
