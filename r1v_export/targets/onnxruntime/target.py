"""The target `onnxruntime`: from a bundle's standard graphs to graphs lowered for ONNX Runtime, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from r1v_export import contract
from r1v_export.config import BuildConfig, Compute, Device, ImageProducts
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
    bundle as the root of its weights, see `session.open_session`. The engine's own is a head that it has in 8 bits, see
    `write.int8_head`.
    """

    name = "onnxruntime"
    graphs = contract.GRAPHS
    config_class = OnnxRuntimeConfig
    tools = doctor.DISTRIBUTIONS
    packed_in_memory = True
    runs_in_libr1v = True

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
        """Weights are the graphs' own, but for a head in 8 bits, see `write.int8_head`."""
        from r1v_export.quantization.groups import LM_HEAD_LINEAR

        if not self.numerics(config, spec).rounds_head or LM_HEAD_LINEAR in schemes:
            return 0
        return head_bytes(spec.sizes.hidden, spec.sizes.vocab)

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        options = config.options(self.name, OnnxRuntimeConfig)
        rounds = chosen_int4_inputs(options.int4_inputs, config) == "int8"
        rounds_head = rounds and group_size(spec.sizes.hidden) is not None
        return NumericsSpec(registry.compute_dtype(config), rounds, rounds_head)

    def image_target(self, config: BuildConfig, schemes: Mapping[str, Scheme]) -> str | None:
        """OpenVINO for a tower in float32, as it multiplies in bfloat16, which kernels here do not, and for INT8. FP8
        gains little there and is rounded twice, see docs/openvino.md."""
        if config.device != "cpu" or registry.compute_dtype(config) != "float32":
            return None
        tower = [scheme for linear, scheme in schemes.items() if not linear.startswith("language_model.")]
        in_int8 = all(scheme.inputs and scheme.inputs.type == scheme.weights.type == "int8" for scheme in tower)
        return OpenVinoTarget.name if in_int8 else None

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
        images, decoder = self.image_target(config, schemes), self.decoder_target(config, schemes, kv_cache)
        if images is not None:
            (out / IMAGES / images).mkdir(parents=True)
            encoding_target(images).write_images(
                inputs.graphs, out / IMAGES / images, self.chosen_image_products(config)
            )
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
        bundle = self._bundle_of(engine, device)
        from r1v_export.targets.onnxruntime.runtime.engine import OnnxRuntimeEngine

        finished = (bundle / MANIFEST).is_file()  # a gate opens what is still being built, once
        positions = spec.language.max_position_embeddings
        return OnnxRuntimeEngine(engine, bundle, spec.sizes, device, keep=finished, positions=positions)

    def open_blocks(self, engine: Path, spec: ModelSpec, device: Device) -> OnnxRuntimeBlocks:
        bundle = self._bundle_of(engine, device)
        from r1v_export.targets.onnxruntime.blockwise import OnnxRuntimeBlocks

        return OnnxRuntimeBlocks(engine, bundle, spec, device)

    def _bundle_of(self, engine: Path, device: Device) -> Path:
        """The bundle of an engine that is complete, on a device that is here."""
        check_device(device)
        missing = [f"{name}.onnx" for name in self.graphs if not (engine / f"{name}.onnx").is_file()]
        if missing:
            raise BundleError(
                "An ONNX Runtime engine is incomplete.",
                where=engine,
                expected=", ".join(f"{name}.onnx" for name in self.graphs),
                found=f"no {', no '.join(missing)}",
                fix="build the bundle again",
            )
        return engine.absolute().parents[1]


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
