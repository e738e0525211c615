"""What targets have in common that write a quantized checkpoint as a Hugging Face folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from r1v_export.config import BuildConfig, Device
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.kv_scales import CacheType
from r1v_export.quantization.recipe import Scheme, load
from r1v_export.quantization.sizes import checkpoint_bytes
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.targets.interface import NumericsSpec, Target
from r1v_export.targets.readers import formats_in, warnings_for


class HubTarget(Target):
    """Writes a folder that is a checkpoint of its own: weights, configuration, tokenizer. Parity reads it back."""

    hub_folder = True
    layout: ClassVar[str]
    """What the layout is called."""
    precisions: ClassVar[tuple[str, ...]]
    """Of those that quantize, the ones that the layout holds by their own recipes."""

    @abstractmethod
    def check_cache(self, kind: CacheType | None) -> None:
        """Refuse a recipe's kind of quantized cache that the layout does not hold.

        Raises:
            UsageError: it does not.
        """

    @abstractmethod
    def check_scheme(self, where: str, scheme: Scheme) -> None:
        """Refuse a scheme that the layout does not hold.

        Args:
            where: linears that it is for.

        Raises:
            UsageError: it does not.
        """

    @abstractmethod
    def formats(self, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> Mapping[str, str]:
        """Linear -> what the layout calls its scheme.

        Raises:
            UsageError: the layout does not hold this model, quantized so.
        """

    def check(self, config: BuildConfig) -> None:
        *others, last = self.precisions
        expected = f"--precision {', '.join(others)} or {last}"
        where, found = f"--target {self.name}", f"--precision {config.precision}"
        if not config.quantized:
            raise UsageError(
                f"A {self.layout} checkpoint is a quantized one.",
                where=where,
                expected=expected,
                found=found,
                fix="name a quantized precision; unquantized, the checkpoint that is built from is what runtimes load",
            )
        if config.recipe is None and config.precision not in self.precisions:
            what = f"The {self.layout} layout does not hold this precision."
            fix = "another precision, or another target"
            raise UsageError(what, where=where, expected=expected, found=found, fix=fix)
        if config.recipe is not None:
            recipe = load(config.recipe)
            self.check_cache(recipe.kv_cache)
            for rule in recipe.rules:
                if rule.scheme is not None:
                    self.check_scheme(", ".join(rule.modules), rule.scheme)

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:
        self.formats(spec, schemes)

    def warnings(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
        return warnings_for(self.name, formats_in(self.formats(spec, schemes), schemes, spec))

    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        return checkpoint_bytes(spec, schemes, spec.dtype)

    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        """The checkpoint is read back in float32: nothing but what it stores is rounded."""
        return NumericsSpec("float32")

    def engine_document(self, engine: Path) -> EngineDocument:
        return EngineDocument(files={"checkpoint": "."}, options={})

    def missing(self, device: Device) -> str | None:
        return None
