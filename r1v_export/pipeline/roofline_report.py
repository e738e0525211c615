"""How much of its device's roofline an engine attains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from r1v_export import contract
from r1v_export.bundle import Bundle
from r1v_export.config import Device
from r1v_export.pipeline.provenance import device_name
from r1v_export.roofline.devices import DEVICES, DeviceSpec, named_by_driver
from r1v_export.runner.bench import Measurement

if TYPE_CHECKING:
    from r1v_export.roofline.workloads import Workload

VISION_PROJECTOR, PREFILL, DECODE = "vision and projector", "prefill", "decode"


class StageFacts(TypedDict):
    """One stage compared with its roofline."""

    measured_ms: float
    roofline_ms: float
    fraction: float | None
    """The latter over the former; None where nothing was measured."""


class RooflineFacts(TypedDict):
    """What an engine attains, as plain values for JSON."""

    gpu: str
    source: str
    """Of the GPU's peak rates."""
    ran_on: str
    stages: dict[str, StageFacts]


class NoRoofline(TypedDict):
    """Why there is nothing to compare with."""

    gpu: None
    why: str


def attained(
    bundle: Bundle, measured: Measurement, ran_on: Device, peaks: DeviceSpec | None = None
) -> RooflineFacts | NoRoofline:
    """What `bench` measured, stage by stage, with the least time that the device needs for the bundle's graphs.

    Vision and projector are one row, for some engines compute both at once; `embed` is a look-up and has none. Decoding
    is measured with embedding and choosing tokens, for which people wait too.

    Args:
        measured: the result of `bench.measure`.
        peaks: of the GPU to compare with; the one that it ran on when None.
    """
    if measured["batch"] > 1:
        return {"gpu": None, "why": "sequences that are answered together share the time of their steps"}
    found = device_name(ran_on)
    peaks = peaks or named_by_driver(found.partition(": ")[2])
    if peaks is None:
        why = (
            f"the peak rates of this device are not known here ({found}); --roofline compares with {', '.join(DEVICES)}"
        )
        return {"gpu": None, "why": why}
    work = {stage: done for stage, done in _workloads(measured).items() if _holds(bundle.graphs, done[0])}
    if not work:
        return {"gpu": None, "why": "the bundle holds no graphs to count in"}
    from r1v_export.roofline.estimate import layer_times, total

    stages: dict[str, StageFacts] = {}
    for stage, (workload, runs, measured_ms) in work.items():
        roofline_ms = 1000 * runs * total(layer_times(workload.costs(bundle.graphs), peaks)).seconds
        stages[stage] = {
            "measured_ms": measured_ms,
            "roofline_ms": roofline_ms,
            "fraction": roofline_ms / measured_ms if measured_ms else None,
        }
    return {"gpu": peaks.name, "source": peaks.source, "ran_on": found, "stages": stages}


def _workloads(measured: Measurement) -> dict[str, tuple[Workload, int, float]]:
    """Stage -> what it computes once, how often, and how long all of it took.

    A step's cost grows evenly with the tokens before it: all steps cost what as many in the middle would.
    """
    from r1v_export.roofline.counts import LENGTH
    from r1v_export.roofline.workloads import Workload

    ms, prompt, steps = measured["stages_ms"], measured["prompt_tokens"], measured["new_tokens"] - 1
    decoder = {"batch": 1, "logit_positions": 1, "capacity": prompt + steps}
    vision = Workload(VISION_PROJECTOR, (contract.VISION, contract.PROJECTOR), {"tiles": measured["tiles"]})
    prefill = Workload(PREFILL, (contract.DECODER,), {**decoder, "seq": prompt, LENGTH: prompt})
    decode = Workload(DECODE, (contract.DECODER,), {**decoder, "seq": 1, LENGTH: prompt + (steps + 1) // 2})
    return {
        VISION_PROJECTOR: (vision, 1, ms["vision_ms"] + ms["projector_ms"]),
        PREFILL: (prefill, 1, ms["prefill_ms"]),
        DECODE: (decode, steps, ms["decode_ms"]),
    }


def _holds(graphs: Path, workload: Workload) -> bool:
    return all((graphs / f"{graph}.onnx").is_file() for graph in workload.graphs)
