from __future__ import annotations

import json

import pytest

from r1v_export.errors import BundleError
from r1v_export.targets.openvino.engine_file import ENGINE_FILE, read_engine_file


def changed(own, change) -> None:
    path = own.engine_folder / ENGINE_FILE
    content = json.loads(path.read_text())
    change(next(iter(content["weights"]["vision"].values())))
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../other/vision.data", "graphs/../../vision.data", "a\0b", "a\\..\\b"]
)
def test_weights_outside_the_bundle_are_refused(own, path):
    changed(own, lambda weight: weight.update(file=path))
    with pytest.raises(BundleError, match="a path inside the bundle"):
        read_engine_file(own.engine_folder)


@pytest.mark.parametrize("field", [{"type": "f64"}, {"offset": -1}, {"shape": [1.5]}, {"more": 1}])
def test_a_wrong_field_is_named(own, field):
    changed(own, lambda weight: weight.update(field))
    with pytest.raises(BundleError, match=next(iter(field))):
        read_engine_file(own.engine_folder)


@pytest.mark.parametrize("field", [{"shape": [1 << 40, 1 << 40]}, {"size_bytes": 4}, {"type": "i4"}])
def test_a_weight_has_the_size_of_its_shape(own, field):
    """Else OpenVINO would read memory behind the file."""
    changed(own, lambda weight: weight.update(field))
    with pytest.raises(BundleError, match="for this shape and type"):
        read_engine_file(own.engine_folder)


def test_a_missing_file_is_named(own):
    (own.engine_folder / ENGINE_FILE).unlink()
    with pytest.raises(BundleError, match=ENGINE_FILE):
        read_engine_file(own.engine_folder)


def test_a_file_that_is_no_text_is_refused(own):
    (own.engine_folder / ENGINE_FILE).write_bytes(b'{"options": "\xec"}')
    with pytest.raises(BundleError, match="cannot be used"):
        read_engine_file(own.engine_folder)
