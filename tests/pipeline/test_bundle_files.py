"""A bundle's documents are compared with the rest of it: a change in them is found, whatever the manifest says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1v_export.errors import BundleError
from r1v_export.manifest import MANIFEST, hash_file
from r1v_export.pipeline.verify import verify_bundle
from r1v_export.processing.pipeline_document import open_files
from r1v_export.progress import Progress

Change = Callable[[dict[str, Any]], None]


def tamper(bundle: Path, name: str, change: Change) -> None:
    """Change a document, and its hash in the manifest to fit."""
    path, manifest = bundle / name, json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for stage in manifest["stages"].values():
        if name in stage["files"]:
            stage["files"][name] = hash_file(path).model_dump(mode="json")
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def set_to(*path_and_value: Any) -> Change:
    *path, last, value = path_and_value

    def change(content: Any) -> None:
        for part in path:
            content = content[part]
        content[last] = value

    return change


CHANGES = {
    "a size": ("contract.json", set_to("sizes", "hidden", 999), "sizes.hidden"),
    "an element type": ("contract.json", set_to("graphs", 0, "outputs", 0, "dtype", "float16"), "graphs.0.outputs.0"),
    "a cache name": ("contract.json", set_to("cache", "past_key", "past.{layer}"), "cache.past_key"),
    "a graph's file": ("contract.json", set_to("graphs", 1, "file", None), "graphs.1.file"),
    "a stop id": ("pipeline.json", set_to("stop_tokens", 0, "id", 7), "stop_tokens.0.id"),
    "a prompt's text": (
        "pipeline.json",
        set_to("prompt", "user", "before", 1, "text", "User\n"),
        "prompt.user.before.1",
    ),
    "a grounding token": (
        "pipeline.json",
        set_to("prompt", "grounding_tokens", [{"token": "<ref>", "id": 3}]),
        "prompt.grounding_tokens",
    ),
    "a grid": ("pipeline.json", set_to("tiling", "grids", 0, "cols", 2), "tiling.grids.0.cols"),
    "the image policy": ("pipeline.json", set_to("image_policy", "published"), "image_policy"),
    "an engine's option": (
        "pipeline.json",
        set_to("engines", "onnxruntime", "options", "rows_per_prompt_run", 4),
        "engines.onnxruntime.options.rows_per_prompt_run",
    ),
}


def test_an_untouched_bundle_passes(tiny_built: Path) -> None:
    verify_bundle(tiny_built, Progress(quiet=True))


@pytest.mark.parametrize(("name", "change", "field"), CHANGES.values(), ids=CHANGES)
def test_a_changed_field_is_found_though_its_hash_fits(
    tiny_bundle: Path, name: str, change: Change, field: str
) -> None:
    tamper(tiny_bundle, name, change)
    with pytest.raises(BundleError, match="contradicts") as caught:
        verify_bundle(tiny_bundle, Progress(quiet=True))
    assert field in str(caught.value.where)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("contract.json", set_to("extra", 1), "unknown field extra"),
        ("pipeline.json", set_to("tiling", "tile_size", "448"), "tiling.tile_size"),
        ("pipeline.json", set_to("schema_version", 2), "schema_version"),
    ],
)
def test_a_document_that_breaks_its_schema_is_refused(
    tiny_bundle: Path, name: str, change: Change, message: str
) -> None:
    tamper(tiny_bundle, name, change)
    with pytest.raises(BundleError, match=message):
        verify_bundle(tiny_bundle, Progress(quiet=True))


def test_a_runner_refuses_ids_that_are_not_the_tokenizer_s(tiny_bundle: Path) -> None:
    tamper(tiny_bundle, "pipeline.json", set_to("prompt", "images", "context", "id", 3))
    with pytest.raises(BundleError, match="does not implement") as caught:
        open_files(tiny_bundle)
    assert "id of <IMG_CONTEXT>" in str(caught.value.where)


@pytest.mark.parametrize(
    "change",
    [
        set_to("stop_tokens", 0, "id", 7),
        set_to("stop_tokens", 0, {"id": 7, "token": None}),
        set_to("stop_tokens", 0, "token", "<no such token>"),
        set_to("stop_tokens", []),
        set_to("generation_config", "eos_token_id", [7]),
        lambda content: content["stop_tokens"].append({"id": 7, "token": None}),
        lambda content: content.update(stop_tokens=[], generation_config={}),
    ],
    ids=["id", "other token", "name", "none", "eos_token_id", "one more", "none and no eos_token_id"],
)
def test_a_runner_refuses_stop_tokens_that_are_not_the_tokenizer_s_or_lack_one(
    tiny_bundle: Path, change: Change
) -> None:
    tamper(tiny_bundle, "pipeline.json", change)
    with pytest.raises(BundleError, match="does not implement") as caught:
        open_files(tiny_bundle)
    assert "stop_tokens" in str(caught.value.where)
    with pytest.raises(BundleError, match="contradicts"):
        verify_bundle(tiny_bundle, Progress(quiet=True))


def test_a_runner_refuses_a_rule_that_it_does_not_follow(tiny_bundle: Path) -> None:
    tamper(tiny_bundle, "pipeline.json", set_to("tiling", "mean", [0.5, 0.5, 0.5]))
    with pytest.raises(BundleError, match="does not implement"):
        open_files(tiny_bundle)


def test_a_missing_document_is_named(tiny_bundle: Path) -> None:
    (tiny_bundle / "pipeline.json").unlink()
    with pytest.raises(BundleError, match=r"pipeline\.json cannot be read"):
        open_files(tiny_bundle)
