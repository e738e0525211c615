from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import r1v_export

ONNXRUNTIME_S_OWN = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}
"""Variables that keep it from reporting."""


@pytest.mark.parametrize(
    ("importing", "said", "reports"),
    [
        ("from r1v_export.targets.onnxruntime.library import ort", {}, False),
        ("from r1v_export.targets.onnxruntime.library import ort", {"ORT_DISABLE_TELEMETRY": "0"}, True),
        ("import onnxruntime as ort", {}, True),
    ],
    ids=["ours", "ours, where the user wants it", "its own"],
)
def test_onnxruntime_reports_nothing_unless_the_user_says_so(
    tmp_path: Path, importing: str, said: dict[str, str], reports: bool
) -> None:
    """The last case is what the others rely on: left alone, it keeps a number and a database of reports here."""
    variables = {name: value for name, value in os.environ.items() if name not in ONNXRUNTIME_S_OWN}
    path = os.pathsep.join([str(Path(r1v_export.__file__).parents[1]), *sys.path])
    variables |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": path, **said}
    code = f"{importing}; ort.get_available_providers()"
    subprocess.run([sys.executable, "-c", code], check=True, env=variables, timeout=300)
    assert any(tmp_path.rglob("*onnxruntime*")) == reports
