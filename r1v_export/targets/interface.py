"""What a target is: `Target`, and three protocols for what only some targets offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel

from r1v_export.config import BuildConfig, Compute, Device, ImageProducts
from r1v_export.contract import BlockwiseEngine, Engine, VisionEngine
from r1v_export.progress import ProgressCallback
from r1v_export.serialized.pipeline import EngineDocument
from r1v_export.strict import StrictModel

if TYPE_CHECKING:
    from r1v_export.bundle import Bundle
    from r1v_export.checkpoint.checkpoint import Checkpoint
    from r1v_export.checkpoint.tensor_file import StoredTensor
    from r1v_export.generation import Generator
    from r1v_export.model_spec import ModelSpec
    from r1v_export.progress import Progress
    from r1v_export.quantization.artifact.artifact import Artifact
    from r1v_export.quantization.artifact.qweight_layout import QweightLayout
    from r1v_export.quantization.recipe import Scheme
    from r1v_export.targets.reused_files import ReusedFiles


@dataclass(frozen=True)
class BuildInputs:
    """What an engine is made from."""

    graphs: Path
    """Folder with the standard graphs that the target asked for, and their weights."""
    checkpoint: Checkpoint
    artifact: Artifact | None
    """The calibration; None where nothing is quantized."""
    config: BuildConfig
    stored: Mapping[str, StoredTensor] = field(default_factory=dict)
    """Tensors that lie in `engines/<name>` already, in files of the calibration, by the names that
    `Target.qweight_layouts` give them."""
    reused: ReusedFiles | None = None
    """Files that a target with `Target.hub_folder` may link instead of writing them; None for no such target."""


OwnWeights = Literal["8-bit weights", "4-bit weights"]


@dataclass(frozen=True)
class NumericsSpec:
    """What an engine rounds that parity with PyTorch must allow for."""

    compute: Compute
    """The dtype of whatever is not quantized."""
    rounds_inputs: bool = False
    """Whether inputs are rounded to 8 bits although the calibration leaves them alone."""
    rounds_head: bool = False
    """Whether the head is rounded to 8 bits, too, where the calibration leaves it alone."""
    own_weights: OwnWeights | None = None
    """What the target itself rounds weights to, embeddings included. PyTorch has no such model: the gate compares with
    the original one, by what that may cost."""


@dataclass(frozen=True)
class Readiness:
    """What a target finds on this machine, for `doctor`."""

    lacks: str | None = None
    """What keeps it from building here; None if it builds."""
    fix: str | None = None
    """What to type to get what is missing."""
    found: Mapping[str, str] = field(default_factory=dict)
    """What is here: a package and its version, or another fact."""


class NoOptions(StrictModel):
    """The block in a build file of a target that has no options."""


class Target(ABC):
    """Turns a model into one target's engines, and opens them.

    The module of a target must import where the target's library is not installed: methods import the library.
    """

    name: ClassVar[str]
    graphs: ClassVar[tuple[str, ...]] = ()
    """The contract's graphs that it builds from; empty if checkpoint and calibration are enough."""
    config_class: ClassVar[type[BaseModel]] = NoOptions
    """Its block of the build file, `targets: {<name>: ...}`: strict and frozen, every field with a default."""
    tools: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version can change what it writes or computes. The one that brings the target is added."""
    opens_lazily: ClassVar[bool] = False
    """Whether `open` reads no weights: an engine's are read when they are first needed, or its decoder is begun."""
    fp8_per_tensor: ClassVar[bool] = False
    """Whether its static FP8 has one scale for a weight, not one for each row of it."""
    qweight_layouts: ClassVar[tuple[QweightLayout, ...]] = ()
    """How its files have quantized values where each block's can be files of their own, which are then the
    calibration's, too: `BuildInputs.stored`. Those of `graphs` always can."""
    hub_folder: ClassVar[bool] = False
    """Whether it writes a Hugging Face folder, whose files can be others', too: `BuildInputs.reused`."""
    packed_in_memory: ClassVar[bool] = False
    """Whether an open engine keeps 4-bit weights packed, and its embedding table in the file; whatever else it holds
    counts as float32."""
    unpacks_whole_blocks: ClassVar[bool] = False
    """Whether an opened block has its quantized values, a byte each, next to its float32 weights for a moment."""
    read_back: ClassVar[str | None] = None
    """How the parity gate computes what it writes, as the end of a sentence about those files, where it is not the
    library that they are for which does; for reports."""
    runs_in_libr1v: ClassVar[bool] = False
    """Whether libr1v, the C++ library in engines/, runs its engines."""

    def readiness(self) -> Readiness:
        """What it needs on a machine and what of that is found here. Raises nothing."""
        return Readiness()

    def runtime_extras(self, device: Device) -> tuple[str, ...]:
        """The extras of this package that opening its engines takes. Most keep tensors in torch's memory."""
        return (self.name, "build")

    def quantized_compute(self, device: Device) -> Compute:
        """The dtype that the graphs are to compute in around quantized linears."""
        return "float16"

    @abstractmethod
    def check(self, config: BuildConfig) -> None:
        """Refuse a build that this machine or this target cannot do, before a checkpoint is downloaded.

        Raises:
            CapabilityError: this machine lacks something.
            UsageError: the config asks for what the target does not have.
        """

    def check_model(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> None:  # noqa: B027
        """Refuse a model that cannot become engines, before any weight is read. As it stands, any model will do.

        Args:
            schemes: of every quantized linear; empty where that is still to be found.

        Raises:
            UsageError: this model, quantized so, cannot become engines.
        """

    def warnings(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
        """What people should know of engines of this model, quantized so, a sentence each."""
        return ()

    @abstractmethod
    def size_bytes(self, config: BuildConfig, spec: ModelSpec, schemes: Mapping[str, Scheme]) -> int:
        """What `build` will write, roughly and at least: weights, where it does not share the graphs'."""

    @abstractmethod
    def numerics(self, config: BuildConfig, spec: ModelSpec) -> NumericsSpec:
        """What the engines round, apart from what the calibration quantizes."""

    def image_targets(self, config: BuildConfig, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
        """Targets, each an `EncodesImages`, whose parts encode images faster than these engines where a machine has
        what they take, the fastest first; `build` then writes those parts, see `targets.images`."""
        return ()

    def chosen_image_products(self, config: BuildConfig) -> tuple[ImageProducts, ...]:
        """What the products of `image_targets` may round their operands to, the fastest first."""
        return ("bfloat16",)

    def decoder_target(self, config: BuildConfig, schemes: Mapping[str, Scheme], kv_cache: str | None) -> str | None:
        """Another target, a `decoders.DecodesForOthers`, whose runtime decodes several requests faster than these
        engines where a machine has it; `build` then writes its part, see `targets.decoders`. None: there is none for
        such engines."""
        return None

    @abstractmethod
    def build(self, inputs: BuildInputs, out: Path, on_progress: ProgressCallback) -> None:
        """Write engines into the empty folder `out`.

        The files come out the same for the same input. `out` is to become `engines/<name>` next to `graphs`, and
        engines may refer to the weights there.

        Args:
            on_progress: called as work is done.

        Raises:
            CapabilityError: the device cannot compute what the graphs ask for.
            GraphError: a graph that the target refuses.
        """

    def engine_document(self, engine: Path) -> EngineDocument:
        """What a runtime other than this package opens, and how, for `pipeline.json`. Needs neither library nor GPU.

        Args:
            engine: the bundle's folder `engines/<name>`, built.
        """
        return EngineDocument(files={}, options={})

    @abstractmethod
    def missing(self, device: Device) -> str | None:
        """Why the parity gate cannot run the engines on `device` here; None if it can."""

    @abstractmethod
    def open(self, engine: Path, spec: ModelSpec, device: Device) -> Engine:
        """The engines in a bundle's folder `engines/<name>`; with `opens_lazily` it reads no weights.

        Raises:
            CapabilityError: this machine lacks the library or the device, or nothing here runs such engines.
            BundleError: engine files are missing or unusable.
        """


@runtime_checkable
class OpensBlocks(Protocol):
    """A target whose engines can be held a block at a time, for a parity gate in bounded memory."""

    name: ClassVar[str]

    def open_blocks(self, engine: Path, spec: ModelSpec, device: Device) -> BlockwiseEngine:
        """The engines in a bundle's folder `engines/<name>`, a block at a time.

        Raises:
            CapabilityError, BundleError: as `Target.open` does, also when a block is opened.
        """
        ...


@runtime_checkable
class EncodesImages(Protocol):
    """A target whose runtime can encode the images of an engine, its own or another target's, from the same graphs."""

    name: ClassVar[str]
    image_compute: ClassVar[Compute]
    """What it computes images in around what is rounded to 8 bits."""

    def write_images(self, graphs: Path, out: Path, products: tuple[ImageProducts, ...]) -> None:
        """Write what it opens into the empty folder `out`, without the weights that the bundle has anyway; needs
        neither library nor CPU.

        Args:
            graphs: the standard graphs, in the folder of that name of the bundle.
            out: to become the folder `images/<name>` of the engine that answers.
            products: what float32 products may round their operands to, the fastest first.

        Raises:
            CapabilityError, GraphError: as `Target.build` does.
        """
        ...

    def image_products(self, engine: Path) -> tuple[ImageProducts, ...]:
        """What `write_images` was given for the folder `engine`. Loads no library.

        Raises:
            BundleError: it is not what `write_images` wrote.
        """
        ...

    def why_not_images(self, products: ImageProducts) -> str | None:
        """Why it encodes no images by such products on this machine; None if it does. Loads no library."""
        ...

    def open_images(self, engine: Path, bundle: Path, spec: ModelSpec, products: ImageProducts) -> VisionEngine:
        """What `write_images` wrote into the folder `engine`, on the weights of the bundle.

        Args:
            products: what float32 products round their operands to; int8 rounds weights and inputs.

        Raises:
            CapabilityError, BundleError: as `Target.open` does.
        """
        ...


class Deployment(NamedTuple):
    """What a runner over a library that decodes by itself is made of."""

    generator: Generator
    vision: VisionEngine
    tiles_per_run: int
    """Tiles that `vision` takes at once."""


@runtime_checkable
class Decodes(Protocol):
    """A target whose own library decodes: `run --engine`."""

    name: ClassVar[str]
    engine_syntax: ClassVar[str]
    """What `--engine` takes for it, in words."""

    def takes_engine(self, engine: str) -> bool:
        """Whether `--engine ENGINE` means this target where none is named."""
        ...

    def check_engine(self, bundle: Bundle, engine: str) -> int:
        """Check, without the library, that an engine is of the bundle.

        Returns:
            GPUs that it runs on.

        Raises:
            BundleError: the bundle was not built for this target, or the engine is another bundle's, or no engine.
        """
        ...

    def open_vision(self, bundle: Bundle, device: Device, tiles_per_gpu: int) -> VisionEngine:
        """Open what encodes the images and nothing else, on one GPU, for a process of its own.

        Raises:
            BundleError: the bundle has nothing that encodes images.
            CapabilityError: what encodes images is missing.
        """
        ...

    def open_generator(self, bundle: Bundle, engine: str, device: Device, tiles_per_gpu: int) -> Deployment:
        """Open an engine that decodes by itself.

        Args:
            engine: as typed.
            device: where images are encoded.
            tiles_per_gpu: tiles that a GPU encodes at once.

        Raises:
            BundleError: the bundle was not built for this target, or the engine is another bundle's.
            CapabilityError: the library, a GPU, or what encodes images is missing.
        """
        ...


class EnginePlan(Protocol):
    """A command that makes an engine of what is in a bundle."""

    arguments: list[str]
    """The words of the command."""
    recipe: str
    """Shell lines that run it in a container."""

    @property
    def ranks(self) -> int:
        """GPUs that the engine runs on."""


@runtime_checkable
class CompilesEngines(Protocol):
    """A target whose engines are made from the bundle's by a program of the library: `r1v-export engine`."""

    name: ClassVar[str]

    def plan_engine(self, bundle: Path, out: Path, workers: int | None) -> EnginePlan:
        """The command; nothing is run.

        Args:
            workers: GPUs to build on at a time; one for each rank if None.

        Raises:
            BundleError: the bundle is not whole.
            UsageError: the sizes of its build's config do not fit the model.
        """
        ...

    def build_engine(self, plan: Any, program: Path | None, progress: Progress) -> None:
        """Run the command and compare the engine with what was asked for.

        Raises:
            CapabilityError: there is no supported program here; says how to build elsewhere.
            UsageError: the output folder is not empty.
            GraphError: the program fails.
            BundleError: the engine is not what was asked for.
        """
        ...


@dataclass(frozen=True)
class EngineDescription:
    """What one file of an engine is."""

    facts: Mapping[str, Any]
    """Plain JSON values, `layers` among them."""
    rows: Sequence[tuple[str, str]]
    """The same in brief, for people."""
    layers: Sequence[tuple[str, str]]
    """Kind and name of every layer."""


@runtime_checkable
class DescribesEngines(Protocol):
    """A target whose engines can be looked into: `inspect BUNDLE --target`."""

    name: ClassVar[str]

    def describe(self, engine: Path) -> Mapping[str, EngineDescription]:
        """Each part of the engine in a bundle's folder `engines/<name>`; needs neither the library nor a GPU.

        Raises:
            BundleError: a file is missing or malformed.
        """
        ...
