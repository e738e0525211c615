"""`verify` does not trust the manifest: one that was made to fit does not let a graph read from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from r1v_export.errors import BundleError, GraphError
from r1v_export.manifest import hash_file
from r1v_export.pipeline.verify import verify_bundle
from r1v_export.progress import Progress


def make_manifest_fit(bundle: Path, changed: str) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for stage in manifest["stages"].values():
        if changed in stage["files"]:
            stage["files"][changed] = hash_file(bundle / changed).model_dump()
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("graph", ["graphs/decoder.onnx", "engines/onnxruntime/decoder.onnx"])
@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("location", "../../secret.data", "outside its bundle"),
        ("location", "/etc/passwd", "outside its bundle"),
        ("offset", str(1 << 40), "ends beyond its file"),
        ("length", "4", "not of its shape's size"),
    ],
)
def test_weights_from_elsewhere_are_refused_though_the_hashes_fit(
    graph: str, key: str, value: str, complaint: str, tiny_bundle: Path
) -> None:
    (tiny_bundle.parent / "secret.data").write_bytes(bytes(1 << 20))
    model = onnx.load(tiny_bundle / graph, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == key).value = value
    (tiny_bundle / graph).write_bytes(model.SerializeToString())
    make_manifest_fit(tiny_bundle, graph)
    with pytest.raises(GraphError, match=complaint):
        verify_bundle(tiny_bundle, Progress(quiet=True))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema_version",), 2.0),
        (("schema_version",), True),
        (("producer",), 1),
        (("parity", "onnxruntime"), True),
        (("stages", "decoder-graph", "files", "graphs/decoder.onnx", "size"), "12"),
        (("stages", "decoder-graph", "files", "graphs/decoder.onnx", "size"), 1.0),
        (("stages", "decoder-graph", "files", "graphs/decoder.onnx", "size"), -1),
        (("stages", "decoder-graph", "files", "graphs/decoder.onnx", "sha256"), 5),
        (("stages", "decoder-graph", "files"), []),
        (("tools",), {"python": None}),
        (("source", "files"), {"../x": {"sha256": "0" * 64, "size": 1}}),
    ],
    ids=str,
)
def test_a_manifest_s_fields_have_their_types(place: tuple[str, ...], value: object, tiny_bundle: Path) -> None:
    path = tiny_bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    inner = manifest
    for key in place[:-1]:
        assert key in inner
        inner = inner[key]
    assert place[-1] in inner
    inner[place[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"manifest is malformed|another schema version"):
        verify_bundle(tiny_bundle, Progress(quiet=True))
