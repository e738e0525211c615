"""The target `compressed-tensors`: a quantized Hugging Face checkpoint as vLLM and SGLang load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from r1v_export.config import Device
from r1v_export.contract import BlockwiseEngine
from r1v_export.model_spec import ModelSpec
from r1v_export.progress import ProgressCallback
from r1v_export.quantization.artifact.qweight_layout import PACKED, PLAIN
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.quantization.recipe import Scheme
from r1v_export.targets.compressed_tensors import doctor
from r1v_export.targets.compressed_tensors.config import CompressedTensorsConfig
from r1v_export.targets.compressed_tensors.runtime.reader import CompressedEngine, CompressedFiles, open_compressed
from r1v_export.targets.compressed_tensors.write.checkpoint import write_compressed
from r1v_export.targets.compressed_tensors.write.formats import cache_scheme, format_of, formats
from r1v_export.targets.hub_reader import open_blocks
from r1v_export.targets.hub_target import HubTarget
from r1v_export.targets.interface import BuildInputs, Readiness
from r1v_export.targets.readers import GROUP_ORDER


class CompressedTensorsTarget(HubTarget):
    """Writes a folder that is a checkpoint of its own: weights, configuration, tokenizer."""

    name = "compressed-tensors"
    layout, precisions = "compressed-tensors", ("fp8", "int8", "int4")
    qweight_layouts = (PACKED, PLAIN)
    config_class = CompressedTensorsConfig
    read_back = "read back by r1v-export and computed in PyTorch, without vLLM and SGLang"

    def readiness(self) -> Readiness:
        return doctor.readiness()

    def check_cache(self, kind: CacheType | None) -> None:
        cache_scheme(kind)

    def check_scheme(self, where: str, scheme: Scheme) -> None:
        format_of(where, scheme)

    def formats(self, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> Mapping[str, str]:
        kinds = formats(spec, schemes)
        return {linear: GROUP_ORDER if schemes[linear].has_input_order else kind for linear, kind in kinds.items()}

    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        assert inputs.artifact is not None, "check refuses builds that quantize nothing"
        write_compressed(inputs.checkpoint, inputs.artifact, out, on_progress, inputs.stored, inputs.reused)

    def open(self, engine: Path, spec: ModelSpec, device: Device) -> CompressedEngine:
        return open_compressed(engine, spec, device)

    def open_blocks(self, engine: Path, spec: ModelSpec, device: Device) -> BlockwiseEngine:
        return open_blocks(self.name, CompressedFiles(engine), spec)
