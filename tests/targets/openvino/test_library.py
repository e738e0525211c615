from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import r1v_export
from tests.targets.openvino.conftest import NEEDS_OPENVINO

TELEMETRY = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
raise ImportError
"""
ASK = """
import sys
sys.path.insert(0, sys.argv[1])
{importing}
import importlib.util
assert importlib.util.find_spec("openvino_telemetry") is not None, "it is there again"
"""


@NEEDS_OPENVINO
@pytest.mark.parametrize(
    ("importing", "imported"),
    [("from r1v_export.targets.openvino.library import ov; ov.Core()", False), ("import openvino", True)],
)
def test_openvinos_telemetry_is_never_imported(tmp_path: Path, importing: str, imported: bool) -> None:
    """The second case is what the first one relies on: left alone, openvino does import it."""
    package = tmp_path / "openvino_telemetry"
    package.mkdir()
    (package / "__init__.py").write_text(TELEMETRY)
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(r1v_export.__file__).parents[1]), *sys.path])}
    code = ASK.format(importing=importing)
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=variables, timeout=300)
    assert (package / "imported").exists() == imported
