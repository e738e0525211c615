"""Templates become a folder."""

from __future__ import annotations

import py_compile
from pathlib import Path

from r1v_export.deploy.folder import fill_templates


def test_bytecode_that_pip_has_made_of_a_template_is_not_deployed(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "probe.py").write_text("URL = '@url@'\n")
    assert "__pycache__" in str(py_compile.compile(str(templates / "probe.py")))
    assert fill_templates(templates, tmp_path / "out", {"url": "http://a"}) == [tmp_path / "out/probe.py"]
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["probe.py"]
    assert (tmp_path / "out/probe.py").read_text() == "URL = 'http://a'\n"
