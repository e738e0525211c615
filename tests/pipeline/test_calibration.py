"""The digest of a calibration set changes with every file that the set is read from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1v_export.pipeline.calibration import data_digest


def write_set(path: Path, *images: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"image": image, "prompt": "What?"}) + "\n" for image in images))
    return path


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("where", ["inside", "parent", "absolute", "linked"])
def test_a_named_image_that_changes_changes_the_digest(tmp_path: Path, where: str, as_folder: bool) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "link").symlink_to(elsewhere)
    places = {
        "inside": ("x.png", folder),
        "parent": ("../elsewhere/x.png", elsewhere),
        "absolute": (f"{elsewhere}/x.png", elsewhere),
        "linked": ("link/x.png", elsewhere),
    }
    name, holder = places[where]
    source = write_set(folder / "set.jsonl", name)
    (holder / "x.png").write_bytes(b"one")
    data = str(folder if as_folder else source)
    before = data_digest(data)
    assert data_digest(data) == before
    (holder / "x.png").write_bytes(b"two")
    assert data_digest(data) != before


def test_a_file_that_no_line_names_does_not_count_outside_the_folder(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set" / "set.jsonl", "../x.png")
    (tmp_path / "x.png").write_bytes(b"one")
    before = data_digest(str(source))
    (tmp_path / "y.png").write_bytes(b"two")
    assert data_digest(str(source)) == before


def test_lines_and_names_that_cannot_be_used_are_left_to_the_reader(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set" / "set.jsonl", "../missing.png", "/dev/zero", "x" * 5000, "..")
    with source.open("a") as file:
        file.write('{"image": 3}\nno JSON\n')
    assert data_digest(str(source))
