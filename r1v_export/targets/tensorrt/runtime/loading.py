"""Opening an engine: everything that can be found wrong before a GPU is asked, then the plans."""

from __future__ import annotations

import logging
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1v_export import contract
from r1v_export.config import Device
from r1v_export.errors import BundleError, CapabilityError
from r1v_export.files import GRAPH_LIMIT_BYTES, open_regular, read_regular_bytes
from r1v_export.gpus import no_gpu
from r1v_export.log_event import log_event
from r1v_export.model_spec import ModelSpec
from r1v_export.targets.tensorrt.build.plan import GRAPH, PLAN, PlanInfo, read_info, require_runs_here
from r1v_export.targets.tensorrt.device import Accelerator, Cuda, compute_capability
from r1v_export.targets.tensorrt.library import Library
from r1v_export.targets.tensorrt.runtime.caches import RuntimeCache
from r1v_export.targets.tensorrt.runtime.engine import TensorRTEngine
from r1v_export.targets.tensorrt.runtime.session import Session

PLANS = (contract.VISION, contract.PROJECTOR, contract.DECODER)

_LOG = logging.getLogger(__name__)
_ERRORS = ("ERROR", "INTERNAL_ERROR")


def open_engine(library: Library, folder: Path, spec: ModelSpec, device: Device) -> TensorRTEngine:
    """The engine in a bundle's folder. All that can be known without a GPU is checked first.

    Raises:
        BundleError: a plan is missing, cut short, or of another version or GPU.
        CapabilityError: there is no GPU.
    """
    found = compute_capability()
    infos = {name: read_info(folder, name) for name in PLANS}
    # Without a GPU the library complains of that at each call; the error below says it once.
    runtime = library.module.Runtime(library.logger(_print_errors if found is not None else _log_errors))
    for name, info in infos.items():
        plan = folder / f"{name}{PLAN}"
        require_runs_here(info, library, plan, found)
        _require_sound_header(library, runtime, plan, found)
    if found is None or device != "cuda":
        raise CapabilityError(
            "TensorRT engines run on a CUDA GPU.",
            where=folder,
            expected=f"--device cuda, and a GPU of compute capability {_served(infos)}",
            found=no_gpu() if found is None else f"--device {device}",
            fix="copy the bundle to a machine with such a GPU; check it there with `r1v-export check --device cuda`"
            if found is None
            else "add --device cuda",
        )
    accelerator = Cuda()

    def load(name: str) -> Session:
        return _load(library, runtime, folder, name, infos[name], accelerator)

    bundle = folder.absolute().parents[1]
    return TensorRTEngine(library.target, spec, load, bundle / "graphs" / f"{contract.EMBED}.onnx")


def _load(library: Library, runtime: Any, folder: Path, name: str, info: PlanInfo, accelerator: Accelerator) -> Session:
    plan = folder / f"{name}{PLAN}"
    engine = deserialize(library, runtime, plan)
    if info.stripped:
        refit(library, engine, folder / f"{name}{GRAPH}", folder.absolute().parents[1])
    cache = RuntimeCache(library, engine, info) if library.compiles_kernels else None
    return Session(engine, info, accelerator, str(plan), cache)


def deserialize(library: Library, runtime: Any, plan: Path) -> Any:
    """An ICudaEngine. The plan is mapped: it takes no host memory except what the library copies.

    Raises:
        BundleError: the library refuses the plan.
    """
    with open_regular(plan) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise BundleError(
            "TensorRT refuses a plan.",
            where=plan,
            found=f"{library.target} {library.version}; its own words are on stderr",
            fix="run `r1v-export verify`; if the bundle is sound, build it again on this machine",
        )
    return engine


def refit(library: Library, engine: Any, graph: Path, weights_root: Path) -> None:
    """Give a stripped engine its weights, from the bundle's.

    Raises:
        BundleError: they do not fit.
    """
    logger = library.logger(_print_errors)
    refitter = library.module.Refitter(engine, logger)
    parser = library.module.OnnxParserRefitter(refitter, logger)
    fits = parser.refit_from_bytes(read_regular_bytes(graph, GRAPH_LIMIT_BYTES), str(weights_root / graph.name))
    if not fits or not refitter.refit_cuda_engine():
        raise BundleError("The bundle's weights do not fit its engine.", where=graph, fix="build the bundle again")


def _require_sound_header(library: Library, runtime: Any, plan: Path, gpu: int | None) -> None:
    problem = library.header_problem(runtime, plan)
    if problem is not None and (gpu is not None or "malformed" in problem or "version" in problem):
        raise BundleError(
            "A plan's header is not one that this TensorRT reads.",
            where=plan,
            expected=f"{library.target} {library.version}",
            found=problem,
            fix="build the bundle again",
        )


def _served(infos: Mapping[str, PlanInfo]) -> str:
    common = set.intersection(*(set(info.compute_capabilities) for info in infos.values()))
    return " or ".join(map(str, sorted(common)))


def _print_errors(severity: str, message: str) -> None:
    if severity in _ERRORS:
        print(message, file=sys.stderr)


def _log_errors(severity: str, message: str) -> None:
    if severity in _ERRORS:
        log_event(_LOG, logging.DEBUG, "%(library)s", library=message)
