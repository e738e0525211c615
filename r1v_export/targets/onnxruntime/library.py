"""ONNX Runtime's module, imported without its telemetry.

From 1.29 on, Microsoft's builds for Linux and macOS report processes, sessions and models to Microsoft, keep a number
for this machine and a database of reports in the user's cache folder, and take a tenth of a second for it at import.
They read the variable below once, when the module is imported. Source: docs/Privacy.md of ONNX Runtime, and its pull
request 27379.
"""

from __future__ import annotations

import os

OFF = "ORT_DISABLE_TELEMETRY"
os.environ.setdefault(OFF, "1")

import onnxruntime as ort  # noqa: E402  # behind the variable that it reads

__all__ = ["ort"]
