"""Folders and files of this package that the kinds of stages run: a change of one makes them again."""

from __future__ import annotations

TRACED_CODE = ("checkpoint", "contract.py", "exporters", "model_spec.py", "reference")
ENGINE_CODE = (*TRACED_CODE, "parallel.py", "targets", "pipeline/reused_weights.py")
DOCUMENTS_CODE = ("processing", "serialized", "pipeline/bundle_files.py")
CALIBRATION_CODE = (
    *("checkpoint", "model_spec.py", "processing", "reference"),
    *("quantization", "nano", "runner"),
    *("pipeline/budget.py", "pipeline/calibration.py", "pipeline/calibration_samples.py", "pipeline/kept_responses.py"),
    *("pipeline/qweight_placement.py", "pipeline/sharded_calibration.py"),
)
RUN_CODE = (
    *(*TRACED_CODE, *DOCUMENTS_CODE, "parallel.py", "targets", "runner", "parity", "nano", "quantization"),
    *("pages.py", "page_templates"),
    *("pipeline/build_gate.py", "pipeline/decoder_gate.py", "pipeline/image_gate.py", "pipeline/parity_gate.py"),
    "pipeline/report_provenance.py",
)
