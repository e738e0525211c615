"""The target `onnxruntime`: from a bundle's standard graphs to graphs lowered for ONNX Runtime, on the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from r1v_export import contract
from r1v_export.config import BuildConfig, Compute, Device, ImageProducts
from r1v_export.cpus import is_x86
from r1v_export.errors import BundleError, CapabilityError, UsageError
from r1v_export.manifest import MANIFEST
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets import registry
from r1v_export.targets.decoders import DECODER, lending_target
from r1v_export.targets.images import IMAGES, encoding_target
from r1v_export.targets.int4_inputs import chosen_int4_inputs, require_int4_weights
from r1v_export.targets.interface import BuildInputs, NumericsSpec, Readiness, Target
from r1v_export.targets.onnxruntime import doctor
from r1v_export.targets.onnxruntime.config import OnnxRuntimeConfig
from r1v_export.targets.onnxruntime.head_file import group_size, head_bytes
from r1v_export.targets.openvino.target import OpenVinoTarget

if TYPE_CHECKING:
    from r1v_export.quantization.recipe import Scheme
    from r1v_export.targets.onnxruntime.blockwise import OnnxRuntimeBlocks
    from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine


LAYERS = "language_model.model.layers."
"""What the names of the decoder's linears begin with, but for the head's."""


class OnnxRuntimeTarget(Target):
    """Writes `<graph>.onnx` for each of the contract's graphs.

    Weights are not copied: the lowered graphs refer to those of the standard ones, by paths relative to the bundle
    (`graphs/decoder.data`). ONNX Runtime follows no path out of a model's folder, so an engine is opened with the
    bundle as the root of its weights, see `session.open_session`. The engine's own are a head that it has in 8 bits,
    see `write.int8_head`, and weights in 8 bits of what encodes images, see `write.graphs`.
    """

    name = "onnxruntime"
    graphs = contract.GRAPHS
    config_class = OnnxRuntimeConfig
    tools = doctor.DISTRIBUTIONS
    packed_in_memory = True
    runs_in_libr1v = True
    opens_lazily = True
    image_compute = "float32"

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def quantized_compute(self, device: Device) -> Compute:
        """Quantized kernels on the CPU know float32 only."""
        return "float32" if device == "cpu" else "float16"

    def check(self, config: BuildConfig) -> None:
        require_int4_inputs(config.options(self.name, OnnxRuntimeConfig), config)
        check_device(config.device)
        from r1v_export.targets.onnxruntime.write.graphs import COMPUTE_TYPES, no_kernels

        compute = registry.compute_dtype(config)
        if compute not in COMPUTE_TYPES:
            raise no_kernels(compute)

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        """Weights are the graphs' own, but for those in 8 bits: the head, see `write.int8_head`, and what encodes
        images, see `write.graphs`."""
        from r1v_export.quantization.groups import LM_HEAD_LINEAR

        rounds_head = self.numerics(config, spec).rounds_head and LM_HEAD_LINEAR not in schemes
        head = head_bytes(spec.sizes.hidden, spec.sizes.vocab) if rounds_head else 0
        return head + (_int8_image_bytes(spec) if self.name in self.image_targets(config, schemes) else 0)

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        options = config.options(self.name, OnnxRuntimeConfig)
        rounds = chosen_int4_inputs(options.int4_inputs, config) == "int8"
        rounds_head = rounds and group_size(spec.sizes.hidden) is not None
        return NumericsSpec(registry.compute_dtype(config), rounds, rounds_head)

    def image_targets(self, config: BuildConfig, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
        """OpenVINO for a tower in float32, as it multiplies in bfloat16, which kernels here do not, and for INT8. FP8
        gains little there and is rounded twice, see docs/openvino.md. Behind it, for CPUs on which it is no faster,
        ONNX Runtime itself for a float32 tower that may be rounded to 8 bits."""
        if config.device != "cpu" or registry.compute_dtype(config) != "float32":
            return ()
        tower = [scheme for linear, scheme in schemes.items() if not linear.startswith("language_model.")]
        in_int8 = all(scheme.inputs and scheme.inputs.type == scheme.weights.type == "int8" for scheme in tower)
        rounds = not tower and "int8" in self.chosen_image_products(config)
        return (*([OpenVinoTarget.name] if in_int8 else []), *([self.name] if rounds else []))

    def chosen_image_products(self, config: BuildConfig) -> tuple[ImageProducts, ...]:
        options = config.options(self.name, OnnxRuntimeConfig)
        if options.image_products is not None:
            return (options.image_products,)
        return ("int8", "bfloat16") if chosen_int4_inputs(options.int4_inputs, config) == "int8" else ("bfloat16",)

    def decoder_target(self, config: BuildConfig, schemes: Mapping[str, Scheme], kv_cache: str | None) -> str | None:
        """OpenVINO for 4-bit weights, which it multiplies nearly twice as fast for several rows. It has no cache in 8
        bits."""
        if kv_cache is not None:
            return None
        decoder = [scheme for name, scheme in schemes.items() if name.startswith(LAYERS)]
        in_4_bits = bool(decoder) and all(scheme.weights.type in ("int4", "uint4") for scheme in decoder)
        on_cpu = config.device == "cpu" and registry.compute_dtype(config) == "float32"
        return OpenVinoTarget.name if on_cpu and in_4_bits else None

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        check_device(inputs.config.device)
        from r1v_export.targets.onnxruntime.write.graphs import write_graphs

        config = inputs.config
        int4_inputs = chosen_int4_inputs(config.options(self.name, OnnxRuntimeConfig).int4_inputs, config)
        write_graphs(inputs.graphs, self.graphs, config.device, int4_inputs, out)
        schemes = inputs.artifact.schemes if inputs.artifact else {}
        kv_cache = inputs.artifact.recipe.kv_cache if inputs.artifact else None
        decoder, products = self.decoder_target(config, schemes, kv_cache), self.chosen_image_products(config)
        for images in self.image_targets(config, schemes):
            (out / IMAGES / images).mkdir(parents=True)
            encoding_target(images).write_images(inputs.graphs, out / IMAGES / images, products)
        if decoder is not None:
            from r1v_export.targets.onnxruntime.write.graphs import decoder_for_others

            (out / DECODER / decoder).mkdir(parents=True)
            model = decoder_for_others(inputs.graphs, int4_inputs)
            lending_target(decoder).write_decoder(model, inputs.graphs, int4_inputs, out / DECODER / decoder)

    def engine_document(self, engine: Path) -> EngineDocument:
        from r1v_export.targets.onnxruntime.session_options import engine_options

        files = {name: f"{name}.onnx" for name in self.graphs}
        return EngineDocument(files=files, options=engine_options(engine, files))

    def missing(self, device: Device) -> str | None:
        try:
            check_device(device)
        except CapabilityError as error:
            return error.what
        return None

    def runtime_extras(self, device: Device) -> tuple[str, ...]:
        return ("onnxruntime-gpu" if device == "cuda" else "onnxruntime",)

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> OnnxRuntimeEngine:
        return self._open(engine, engine.absolute().parents[1], self.graphs, spec, device)

    def _open(
        self, engine: Path, bundle: Path, graphs: Iterable[str], spec: ModelSpec, device: Device
    ) -> OnnxRuntimeEngine:
        """The engine in a folder that has to have some graphs, on a device that is here."""
        _require_graphs(engine, graphs, device)
        from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine

        finished = (bundle / MANIFEST).is_file()  # a gate opens what is still being built, once
        positions = spec.language.max_position_embeddings
        return OnnxRuntimeEngine(engine, bundle, spec.sizes, device, keep=finished, positions=positions)

    def write_images(self, graphs: Path, out: Path, products: tuple[ImageProducts, ...]) -> None:
        from r1v_export.targets.onnxruntime.write.graphs import write_int8_images

        write_int8_images(graphs, out)

    def image_products(self, engine: Path) -> tuple[ImageProducts, ...]:
        return ("int8",)

    def why_not_images(self, products: ImageProducts) -> str | None:
        if products != "int8":
            return f"onnxruntime has no {products} products on CPUs"
        return None if is_x86() else "images in 8 bits by onnxruntime are for x86 CPUs"

    def open_images(self, engine: Path, bundle: Path, spec: ModelSpec, products: ImageProducts) -> OnnxRuntimeEngine:
        return self._open(engine, bundle.absolute(), contract.IMAGE_GRAPHS, spec, "cpu")

    def open_blocks(self, engine: Path, spec: ModelSpec, device: Device) -> OnnxRuntimeBlocks:
        _require_graphs(engine, self.graphs, device)
        from r1v_export.targets.onnxruntime.blockwise import OnnxRuntimeBlocks

        return OnnxRuntimeBlocks(engine, engine.absolute().parents[1], spec, device)


def _require_graphs(engine: Path, graphs: Iterable[str], device: Device) -> None:
    """Check that an engine is complete and its device is here.

    Raises:
        BundleError, CapabilityError: it is not.
    """
    check_device(device)
    files = [f"{name}.onnx" for name in graphs]
    if missing := [file for file in files if not (engine / file).is_file()]:
        raise BundleError(
            "An ONNX Runtime engine is incomplete.",
            where=engine,
            expected=", ".join(files),
            found=f"no {', no '.join(missing)}",
            fix="build the bundle again",
        )


def _int8_image_bytes(spec: ModelSpec) -> int:
    """Of the weights of the tower's and the projector's products in 8 bits."""
    vision, projector = spec.vision, spec.projector
    block = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    return vision.num_layers * block + projector.hidden_size * (projector.in_features + projector.hidden_size)


def require_int4_inputs(options: OnnxRuntimeConfig, config: BuildConfig) -> None:
    """Check that there are 4-bit weights, and kernels that round their inputs, if that is asked for.

    Raises:
        UsageError: there are not.
    """
    if options.int4_inputs == "int8" and config.device != "cpu":
        raise UsageError(
            "ONNX Runtime rounds inputs of 4-bit weights to 8 bits on the CPU only.",
            where="int4_inputs",
            expected="exact",
            found=f"int8, for device {config.device}",
            fix="omit int4_inputs, or build with --device cpu",
        )
    require_int4_weights(options.int4_inputs, config)


def check_device(device: Device) -> None:
    """Check that ONNX Runtime is installed and can run on a device.

    Raises:
        CapabilityError: ONNX Runtime is not installed, or does not run on this device.
    """
    doctor.require()
    from r1v_export.targets.onnxruntime.runtime.session import check_device as check

    check(device)
