from __future__ import annotations

import subprocess
import sys

import pytest

from r1v_export.errors import UsageError
from r1v_export.targets import registry


@pytest.mark.parametrize("name", registry.TARGETS)
def test_every_registered_target_can_be_made_and_knows_its_name(name):
    assert registry.get_target(name).name == name


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(UsageError, match="onnxruntime") as error:
        registry.get_target("openvino")
    assert error.value.found == "openvino"


def test_importing_the_registry_imports_no_engine():
    code = "import sys, r1v_export.targets.registry; print(*(m for m in ('torch', 'onnxruntime') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
