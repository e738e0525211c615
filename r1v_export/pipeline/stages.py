"""The stages of a build, in order: the model's own files, one per graph, one per engine, and the parity gate."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from r1v_export import contract
from r1v_export.build_file import config_yaml
from r1v_export.bundle import BUILD_CONFIG, ENGINES, GRAPHS, MODEL_SPEC, REPORT
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig, Compute
from r1v_export.errors import CapabilityError
from r1v_export.pipeline import provenance
from r1v_export.pipeline.budget import largest_mix, possible_schemes
from r1v_export.pipeline.bundle_files import write_files
from r1v_export.pipeline.calibration import (
    CALIBRATION,
    calibration_warnings,
    chosen_recipe,
    finished_digest,
    open_artifact,
    require_origin,
)
from r1v_export.pipeline.calibration_cost import given_seconds
from r1v_export.pipeline.effort import resolved_calibration
from r1v_export.pipeline.estimate import engine_s, graph_s, tracing_s, writing_s
from r1v_export.pipeline.gate_stage import gate_stage
from r1v_export.pipeline.imported import import_calibration
from r1v_export.pipeline.planned_calibration import PlannedCalibration
from r1v_export.pipeline.qweight_placement import place_in_bundle, placed_bytes
from r1v_export.pipeline.rates import measured_rates
from r1v_export.pipeline.report_provenance import BuildLabel
from r1v_export.pipeline.reused_weights import check_link_weights, reused_bytes, reused_files
from r1v_export.pipeline.sharded_calibration import calibrate
from r1v_export.pipeline.stage import Needs, Stage, StageInputs
from r1v_export.pipeline.stage_code import CALIBRATION_CODE, DOCUMENTS_CODE, ENGINE_CODE, TRACED_CODE
from r1v_export.pipeline.workers import ThisProcess, Workers
from r1v_export.pipeline.workspace import kept_folder
from r1v_export.progress import ProgressCallback, subrange
from r1v_export.quantization.calibration.imported import imported_recipe
from r1v_export.quantization.recipe import resolve
from r1v_export.quantization.sizes import calibration_bytes, weight_bytes
from r1v_export.targets import registry
from r1v_export.targets.interface import BuildInputs

if TYPE_CHECKING:
    from r1v_export.exporters.graph import Rewrite
    from r1v_export.quantization.artifact.artifact import Artifact
    from r1v_export.quantization.recipe import Recipe, Scheme

CALIBRATION_STAGE = "calibration"
DOCUMENTS_STAGE = "documents"


@dataclass(frozen=True)
class Build:
    """What the stages of one build work on."""

    config: BuildConfig
    """Of `registry.resolved`."""
    checkpoint: Checkpoint
    out: Path
    workers: Workers = ThisProcess()  # noqa: RUF009  it has no state
    """Where the parts of a calibration run."""
    worker_bytes: int | None = None
    """Free memory for a task on the smallest worker of a cluster; None where this process does all."""
    lacking: Mapping[str, CapabilityError] = field(default_factory=dict)
    """Targets that this machine cannot build, and why; for a plan, a build is refused before."""
    parent_label: BuildLabel | None = None
    """Of the build that this is a task of, in another process."""
    gates: dict[str, Literal["whole", "streamed"]] = field(default_factory=dict)
    """How engines are compared, by target, as far as that is chosen: see `gate`."""

    @cached_property
    def calibrated_config(self) -> BuildConfig:
        """The config with what its calibration stands for with this model on this machine."""
        imported = self.checkpoint.quantized is not None
        return self.config if imported else resolved_calibration(self.config, self.checkpoint)

    @cached_property
    def recipe(self) -> Recipe | None:
        """Checked against the model; None where nothing is quantized, and where a budget has yet to find it."""
        if self.checkpoint.quantized is not None:
            return imported_recipe(self.checkpoint)
        return chosen_recipe(self.calibrated_config)

    @cached_property
    def schemes(self) -> Mapping[str, Scheme]:
        """How the recipe, checked against the model, quantizes each linear; empty where there is none yet."""
        if self.recipe is None:
            return {}
        return resolve(self.recipe, self.checkpoint.spec)

    @cached_property
    def possible_schemes(self) -> Sequence[Mapping[str, Scheme]]:
        """The schemes; of a budget, which has yet to choose, those of each of its recipes."""
        return possible_schemes(self.calibrated_config, self.checkpoint, self.recipe)

    @cached_property
    def planned_schemes(self) -> Mapping[str, Scheme]:
        """The schemes by which sizes and times are planned; of a budget those of the largest mix that it allows."""
        if self.recipe is not None or self.config.budget is None:
            return self.schemes
        return largest_mix(self.calibrated_config, self.checkpoint)

    @cached_property
    def artifact(self) -> Artifact | None:
        """This build's calibration, read once its stage is done; None where nothing is quantized, also when the folder
        still holds the calibration of an earlier build."""
        return open_artifact(self.out, self.checkpoint) if self.config.quantized else None

    @property
    def saved_config(self) -> BuildConfig:
        """The config as it is saved in the bundle, with the checkpoint's source and revision."""
        source = self.checkpoint.source
        return self.config.saved(source.kind, source.revision)

    @cached_property
    def label(self) -> BuildLabel:
        """What its reports call it."""
        if self.parent_label is not None:
            return self.parent_label
        revision, command = self.checkpoint.source.revision, self.saved_config.command
        return BuildLabel(self.saved_config.model, revision, command, provenance.source_date())

    def _settings(self, *without: str) -> dict[str, object]:
        """The config as JSON values, without parts that a stage does not read."""
        return self.saved_config.model_dump(mode="json", exclude=set(without))

    def stages(self) -> list[Stage]:
        """All stages, each after those that it reads from.

        Raises:
            UsageError, CapabilityError: a target does not take this model, quantized so, or weights cannot be linked.
        """
        check_link_weights(self.config, self.checkpoint, self.out, self.schemes)
        for target in self.config.targets:
            registry.get_target(target).check_model(self.config, self.checkpoint.spec, self.schemes)
        stages = [
            self._model_stage(),
            *self._calibration_stages(),
            *self._graph_stages(),
            *self._engine_stages(),
            self._documents_stage(),
        ]
        checked = [target for target in self.config.targets if self.unchecked(target) is None]
        return [*stages, *(self._gate_stage(target) for target in checked)]

    def unchecked(self, target: str) -> str | None:
        """Why the parity gate of a target cannot run, or None where it does."""
        if not self.config.parity.enabled:
            return "omitted (--no-parity)"
        return registry.get_target(target).missing(self.config.device)

    def gate(self, target: str) -> Literal["whole", "streamed"]:
        """How a target's engine is compared. What is chosen first is kept: memory becomes free and is taken.

        Raises:
            CapabilityError: as `parity_gate.choose_gate`.
        """
        from r1v_export.pipeline.parity_gate import choose_gate

        if target not in self.gates:
            spec, schemes = self.checkpoint.spec, self.possible_schemes
            self.gates[target] = choose_gate(self.config, target, spec, *schemes, worker_bytes=self.worker_bytes)
        return self.gates[target]

    @cached_property
    def compute(self) -> Compute:
        """The dtype that the graphs compute in, around what is quantized."""
        return registry.compute_dtype(self.config)

    @cached_property
    def graphs(self) -> tuple[str, ...]:
        """The graphs that the targets are built from, in the order of the data flow."""
        wanted = {name for target in self.config.targets for name in registry.get_target(target).graphs}
        return tuple(name for name in contract.GRAPHS if name in wanted)

    def report_folder(self, target: str) -> Path:
        """Where in the bundle a target's parity report is: `report`, or a folder in it where there are several."""
        return Path(REPORT) if len(self.config.targets) == 1 else Path(REPORT, target)

    def source_files(self) -> dict[str, Path]:
        """Every file of the checkpoint that a build reads, by name."""
        return {path.name: path for path in (*self.checkpoint.files(), *self.checkpoint.auxiliary_files())}

    def _model_stage(self) -> Stage:
        auxiliary = self.checkpoint.auxiliary_files()
        spec = self.checkpoint.spec

        def make(folder: Path, inputs: StageInputs, on_progress: ProgressCallback) -> None:
            for path in auxiliary:
                shutil.copyfile(path, folder / path.name)
            (folder / MODEL_SPEC).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")

        return Stage(
            "model-files",
            make,
            code=("checkpoint", "model_spec.py"),
            settings={"spec": spec.model_dump(mode="json")},
            sources=tuple(path.name for path in auxiliary),
            size_bytes=sum(path.stat().st_size for path in auxiliary),
        )

    def _calibration_stages(self) -> Iterator[Stage]:
        if not self.config.quantized:
            return
        artifact, planned = self.config.calibration.artifact, self._planned_calibration
        if artifact is not None:
            require_origin(Path(artifact), self.checkpoint)
        # An imported checkpoint's values follow from its files.
        settings = planned.settings if planned else {"artifact": artifact and finished_digest(artifact)}
        size_bytes = calibration_bytes(self.checkpoint.spec, self.planned_schemes)
        yield Stage(
            CALIBRATION_STAGE,
            self._calibrate,
            code=CALIBRATION_CODE,
            tools=(*provenance.TRACING_TOOLS, *provenance.INPUT_TOOLS),
            settings=settings,
            sources=tuple(self.source_files()),
            size_bytes=size_bytes,
            seconds=planned.seconds if planned else partial(given_seconds, self.checkpoint, self.recipe, size_bytes),
            needs=(lambda: planned.needs) if planned else Needs,
            notes=calibration_warnings,
        )

    @property
    def calibrates_on_workers(self) -> bool:
        """Whether a calibration is in parts, which a cluster's workers do."""
        return self.recipe is not None and self.config.calibration.shards > 1

    @cached_property
    def _planned_calibration(self) -> PlannedCalibration | None:
        """None where a finished calibration or the checkpoint has the scales."""
        if self.config.calibration.artifact is not None or self.checkpoint.quantized is not None:
            return None
        worker_bytes = self.worker_bytes if self.calibrates_on_workers else None
        return PlannedCalibration(self.config, self.calibrated_config, self.checkpoint, self.recipe, worker_bytes)

    def _calibrate(self, folder: Path, inputs: StageInputs, on_progress: ProgressCallback) -> None:
        work = kept_folder(self.out, CALIBRATION_STAGE) / "blocks"
        if self.checkpoint.quantized is not None:
            import_calibration(self.checkpoint, folder / CALIBRATION, work, on_progress)
            return
        config, out = self.calibrated_config, folder / CALIBRATION
        calibrate(config, self.recipe, self.checkpoint, out, work, on_progress, self.workers)
        place_in_bundle(out, config, self.checkpoint)

    @cached_property
    def _placed_bytes(self) -> Mapping[str, int]:
        """What graphs and targets have in the files of the calibration."""
        return placed_bytes(self.config, self.checkpoint.spec, self.planned_schemes)

    @property
    def _after_calibration(self) -> tuple[str, ...]:
        return (CALIBRATION_STAGE,) if self.config.quantized else ()

    def _graph_stages(self) -> Iterator[Stage]:
        sources = tuple(path.name for path in self.checkpoint.files())
        sizes = weight_bytes(self.checkpoint.spec, self.planned_schemes, self.compute)
        for name in self.graphs:
            size_bytes = sizes[name] - self._placed_bytes.get(name, 0)
            yield Stage(
                f"{name}-graph",
                partial(self._export, name),
                code=(*TRACED_CODE, "quantization") if self.config.quantized else TRACED_CODE,
                tools=provenance.TRACING_TOOLS,
                settings={"compute": self.compute, "spec": self.checkpoint.spec.model_dump(mode="json")},
                sources=sources,
                after=self._after_calibration,
                is_task=True,
                size_bytes=size_bytes,
                seconds=partial(self._graph_s, name, size_bytes),
            )

    def _graph_s(self, name: str, size_bytes: int) -> float:
        is_first, spec = name == self.graphs[0], self.checkpoint.spec
        return graph_s(name, spec, self.planned_schemes, size_bytes, measured_rates(), is_first=is_first)

    def _export(self, name: str, folder: Path, inputs: StageInputs, on_progress: ProgressCallback) -> None:
        import torch

        from r1v_export.exporters.export import export_graph

        (folder / GRAPHS).mkdir(exist_ok=True)
        compute, is_first = getattr(torch, self.compute), name == self.graphs[0]
        on_progress(0.0, 1.0, "tracing")
        # Of a small model, tracing is nearly all of it.
        traced = tracing_s(name, self.checkpoint.spec, is_first=is_first)
        share = traced / (traced + writing_s(weight_bytes(self.checkpoint.spec, self.schemes, self.compute)[name]))
        part = subrange(on_progress, share, 1.0)

        def writing(done: float, total: float, status: str = "") -> None:
            part(done, total, status or "writing weights")

        export_graph(name, self.checkpoint, folder / GRAPHS, compute, writing, self._quantizer())

    def _quantizer(self) -> Rewrite | None:
        """What quantizes a traced graph, from the calibration that is in the bundle by now."""
        if self.artifact is None:
            return None
        from r1v_export.quantization.apply.onnx import artifact_quantizer

        return artifact_quantizer(self.artifact, self.out / GRAPHS)

    def _engine_stages(self) -> Iterator[Stage]:
        for target, options in self.config.targets.items():
            schemes = self.planned_schemes
            size_bytes = registry.get_target(target).size_bytes(self.config, self.checkpoint.spec, schemes)
            size_bytes -= self._placed_bytes.get(target, 0)
            size_bytes -= reused_bytes(target, self.config, self.checkpoint, schemes)
            yield Stage(
                f"{target}-engine",
                partial(self._build_engine, target),
                code=(*ENGINE_CODE, *(("quantization",) if self.config.quantized else ())),
                tools=(*provenance.TRACING_TOOLS, *registry.tools(target)),
                # What the model is called decides nothing: a task of a Ray cluster knows a hub model by its folder.
                settings={
                    "config": self._settings("model", "revision", "calibration", "parity", "targets"),
                    "options": options,
                },
                sources=tuple(path.name for path in self.checkpoint.files()),
                after=("model-files", *self._after_calibration, *_graph_stages_of(target)),
                is_task=True,
                size_bytes=size_bytes,
                seconds=partial(self._engine_s, target, size_bytes),
                needs=partial(Needs, obstacle=self.lacking.get(target)),
                notes=partial(self._target_warnings, target),
            )

    def _engine_s(self, target: str, size_bytes: int) -> float:
        graphs = registry.get_target(target).graphs
        return engine_s(self.checkpoint.spec, self.planned_schemes, size_bytes, measured_rates(), graphs)

    def _target_warnings(self, target: str, bundle: Path) -> tuple[str, ...]:
        schemes = self.schemes if self.artifact is None else self.artifact.schemes
        return registry.get_target(target).warnings(self.config, self.checkpoint.spec, schemes)

    def _build_engine(self, target: str, folder: Path, inputs: StageInputs, on_progress: ProgressCallback) -> None:
        engine = folder / ENGINES / target
        engine.mkdir(parents=True, exist_ok=True)
        stored = self.artifact.stored_in(self.out / ENGINES / target) if self.artifact else {}
        reused = reused_files(target, self.config, self.checkpoint, self.out, inputs.finished)
        parts = BuildInputs(self.out / GRAPHS, self.checkpoint, self.artifact, self.config, stored, reused)
        registry.get_target(target).build(parts, engine, on_progress)

    def _documents_stage(self) -> Stage:
        engines = tuple(f"{target}-engine" for target in self.config.targets)

        def make(folder: Path, inputs: StageInputs, on_progress: ProgressCallback) -> None:
            write_files(self.out, self.graphs, self.config, self.checkpoint.spec, folder)
            (folder / BUILD_CONFIG).write_text(config_yaml(self.saved_config), encoding="utf-8")

        return Stage(
            DOCUMENTS_STAGE,
            make,
            code=("build_file.py", "config.py", "contract.py", "model_spec.py", *DOCUMENTS_CODE, "targets"),
            settings={"spec": self.checkpoint.spec.model_dump(mode="json"), "config": self._settings()},
            after=("model-files", *(f"{name}-graph" for name in self.graphs), *engines),
        )

    def _gate_stage(self, target: str) -> Stage:
        engine = (*_graph_stages_of(target), f"{target}-engine")
        return gate_stage(self, target, ("model-files", *self._after_calibration, *engine, DOCUMENTS_STAGE))


def _graph_stages_of(target: str) -> tuple[str, ...]:
    return tuple(f"{name}-graph" for name in registry.get_target(target).graphs)
