"""A report with all that calibration and other bundles add to its page."""

from __future__ import annotations

from r1v_export.parity import ParityReport
from r1v_export.parity.schema import BundleFacts, CalibrationFacts
from r1v_export.quantization.mixed_precision.sensitivity import Candidate, Selection, SensitivityTable


def detail(report: ParityReport) -> ParityReport:
    """A report with everything that it can say of calibration, and with bundles side by side."""
    costs = {"16-bit": (200, 0.0), "fp8": (100, 1e-4), "int4": (60, 2e-3)}
    modules = ("vision_model.encoder.layers.0.mlp.fc1", "mlp1.1", "language_model.model.layers.0.mlp.gate_proj")
    options = [
        Candidate(module=module, precision=precision, size_bytes=size, snr_db=30.0, kl=kl)
        for module in modules
        for precision, (size, kl) in costs.items()
    ]
    selection = Selection(
        budget="kl=0.02", precisions=dict(zip(modules, costs, strict=True)), size_bytes=2_345_678, kl=0.0123
    )
    table = SensitivityTable(
        checkpoint="0" * 64, samples=16, fixed_bytes=1000, options=tuple(options), selection=selection
    )
    warning = "Keys of <b>layer 3</b> reach 120 in channel 7"
    calibration = CalibrationFacts(recipe="mixed-auto", samples=128, warnings=(warning,), sensitivity=table)
    bundles = tuple(
        BundleFacts(
            name=name,
            precision=name,
            target="onnxruntime",
            size_bytes=size,
            mean_kl=kl,
            top1_agreement=0.99,
            correct=30,
            scored=32,
        )
        for name, size, kl in (("int4", 9_900_000, 4.1e-3), ("fp8", 8_900_000, 7.3e-4), ("fp32", 24_500_000, 0.0))
    )
    return report.model_copy(update={"calibration": calibration, "bundles": bundles})
