"""The manifest: every way in which a bundle can differ from it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from r1v_export.errors import BundleError
from r1v_export.manifest import (
    MANIFEST,
    StageEntry,
    find_issues,
    hash_file,
    read_manifest,
    verify,
)
from tests.manifests import manifest_of

FILES = {"config.json": b"{}\n", "graphs/vision.onnx": b"graph", "graphs/vision.data": b"\0" * 4096}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder of three files and its manifest."""
    folder = tmp_path / "bundle"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    entries = {name: hash_file(folder / name) for name in FILES}
    manifest = manifest_of({"all": StageEntry(fingerprint="0" * 64, files=entries)})
    (folder / MANIFEST).write_text(manifest.to_json())


def edit(folder: Path, **fields: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def problems(folder: Path) -> list[tuple[str, str]]:
    return [(problem.path, problem.what) for problem in find_issues(folder, read_manifest(folder))]


def test_an_untouched_bundle_has_no_problems(bundle: Path) -> None:
    assert verify(bundle).files.keys() == FILES.keys()


def test_a_bundle_may_be_moved(bundle: Path, tmp_path: Path) -> None:
    moved = bundle.rename(tmp_path / "elsewhere")
    verify(moved)


def test_hashes_are_those_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    entry = hash_file(tmp_path / "empty")
    assert (entry.sha256, entry.size) == ("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 0)


def test_progress_grows_to_the_whole(bundle: Path) -> None:
    seen: list[float] = []
    verify(bundle, lambda done, total, status="": seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    assert problems(bundle) == [("config.json", "is missing")]


def test_one_changed_bit_is_found(bundle: Path) -> None:
    content = bytearray(FILES["graphs/vision.data"])
    content[2000] ^= 1
    (bundle / "graphs/vision.data").write_bytes(content)
    assert problems(bundle) == [("graphs/vision.data", "is altered")]


def test_a_truncated_file_is_found_with_both_sizes(bundle: Path) -> None:
    (bundle / "graphs/vision.data").write_bytes(b"\0" * 4000)
    with pytest.raises(BundleError, match=r"has another size") as caught:
        verify(bundle)
    assert (caught.value.expected, caught.value.found) == ("4096 bytes", "4000 bytes")


def test_an_extra_file_is_found(bundle: Path) -> None:
    (bundle / "graphs/extra.onnx").write_bytes(b"")
    assert problems(bundle) == [("graphs/extra.onnx", "is not in the manifest")]
    with pytest.raises(BundleError) as caught:
        verify(bundle)
    assert caught.value.fix == "remove what is not part of the bundle, or move it to another folder"


def test_what_check_leaves_on_this_machine_is_not_hashed(bundle: Path) -> None:
    (bundle / "report/local").mkdir(parents=True)
    (bundle / "report/local/parity.html").write_text("latencies")
    assert problems(bundle) == []


def test_all_other_reports_are_hashed(bundle: Path) -> None:
    (bundle / "report").mkdir()
    (bundle / "report/parity.html").write_text("?")
    assert problems(bundle) == [("report/parity.html", "is not in the manifest")]


def test_a_bundle_behind_a_hub_cache_s_links_is_whole(bundle: Path, tmp_path: Path) -> None:
    for name in FILES:
        blob = tmp_path / "blobs" / hash_file(bundle / name).sha256
        blob.parent.mkdir(exist_ok=True)
        (bundle / name).rename(blob)
        (bundle / name).symlink_to(os.path.relpath(blob, (bundle / name).parent))
    assert problems(bundle) == []
    blob.write_bytes(bytes(len(blob.read_bytes())) + b"!")
    assert problems(bundle) == [("graphs/vision.data", "has another size")]


def test_a_linked_folder_is_compared_like_any_other(bundle: Path, tmp_path: Path) -> None:
    graphs = (bundle / "graphs").rename(tmp_path / "graphs")
    (bundle / "graphs").symlink_to(graphs)
    assert problems(bundle) == []
    (graphs / "extra").write_text("?")
    (graphs / "vision.onnx").write_bytes(b"altered")
    assert problems(bundle) == [
        ("graphs/extra", "is not in the manifest"),
        ("graphs/vision.onnx", "has another size"),
    ]


def test_a_link_that_leads_to_no_regular_file_is_refused(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    (bundle / "config.json").symlink_to("/dev/zero")
    assert problems(bundle) == [("config.json", "is no regular file")]
    (bundle / "config.json").unlink()
    (bundle / "config.json").symlink_to("config.json")
    assert problems(bundle) == [("config.json", "is missing")]


def test_a_link_that_the_manifest_does_not_name_is_extra_and_not_followed(bundle: Path) -> None:
    (bundle / "everything").symlink_to("/")
    assert problems(bundle) == [("everything", "is not in the manifest")]


def test_a_named_pipe_does_not_hang_the_check(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")
    assert problems(bundle) == [("config.json", "is no regular file")]


def test_an_interrupted_build_is_reported_from_a_wrong_folder(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).unlink()
    with pytest.raises(BundleError, match="This is not a bundle"):
        verify(bundle)
    (bundle / ".work").mkdir()
    with pytest.raises(BundleError, match="not finished"):
        verify(bundle)
    with pytest.raises(BundleError, match="no such folder"):
        verify(tmp_path / "nowhere")
    (file := tmp_path / "file").touch()
    with pytest.raises(BundleError, match="a file and not a folder"):
        verify(file)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "a\\b", "C:a", "", "."])
def test_a_path_that_could_leave_the_folder_is_refused(bundle: Path, path: str) -> None:
    entry = {"sha256": "0" * 64, "size": 0}
    edit(bundle, stages={"all": {"fingerprint": "0" * 64, "files": {path: entry}}})
    with pytest.raises(BundleError, match="malformed"):
        verify(bundle)


@pytest.mark.parametrize(
    ("version", "fix"),
    [(0, "build"), (1, "build"), ("2", "build"), (None, "build"), (99, "install a newer r1v-export")],
)
def test_another_schema_version_is_said_first(bundle: Path, version: object, fix: str) -> None:
    edit(bundle, schema_version=version, unknown_field=1)
    with pytest.raises(BundleError, match=rf"another schema version[\s\S]*fix: +{fix}"):
        verify(bundle)


@pytest.mark.parametrize(
    "fields",
    [{"unknown": 1}, {"stages": []}, {"precision": None}, {"stages": {"all": {"fingerprint": "zz", "files": {}}}}],
)
def test_unknown_and_wrong_fields_are_refused(bundle: Path, fields: dict[str, object]) -> None:
    edit(bundle, **fields)
    with pytest.raises(BundleError, match="malformed"):
        verify(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null"])
def test_a_manifest_that_is_no_object_is_one_error(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError):
        verify(bundle)


def test_equal_manifests_have_equal_bytes_whatever_the_order(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    stages = {
        name: stage.model_copy(update={"files": dict(reversed(stage.files.items()))})
        for name, stage in manifest.stages.items()
    }
    turned = manifest.model_copy(update={"stages": stages, "tools": dict(reversed(manifest.tools.items()))})
    assert turned.to_json() == manifest.to_json() == (bundle / MANIFEST).read_text()
