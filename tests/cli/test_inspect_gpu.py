"""`inspect MODEL --roofline GPU`: a checkpoint sized before anything is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.cli import main
from tests.documents import PROJECT, blocks_of
from tests.quantized_checkpoints import AWQ, pack_awq, quantized_copy


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Skywork-R1V3-38B: 77 GB of holes."""
    return synthesize(tmp_path_factory.mktemp("38b") / "SKYWORK_R1V3_38B", preset="r1v3-38b", weights="empty")


@pytest.fixture
def sized(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command line that reads no weights; its stdout, and parsed where JSON was asked for."""

    def run(*arguments: str | Path) -> Any:
        monkeypatch.setattr(Checkpoint, "read", None)
        assert main.run(["inspect", *map(str, arguments)]) == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        return json.loads(printed) if "json" in arguments else printed

    return run


def test_a_38b_is_sized_from_its_headers(huge: Path, sized, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--tp", "2", "--precision", "fp8", "--prompt", "4096", "--batch", "8"]
    found = sized(huge, "--roofline", "H100", *options, "--format", "json")
    assert found["requests"] == {"prompt": 4096, "new_tokens": 1024, "tiles": 13, "batch": 8, "context": 5120}
    # 64 layers, keys and values of 4 of 8 heads of 128 numbers in 16 bits.
    assert found["memory_per_gpu"]["cache_bytes_per_token"] == 64 * 2 * 4 * 128 * 2
    assert {name: row["fits"] for name, row in found["fits"].items()} == {
        "H100": True,
        "24 GB": False,
        "48 GB": True,
        "80 GB": True,
        "141 GB": True,
    }
    monkeypatch.setenv("COLUMNS", "200")
    text = sized(huge, "--roofline", "H100", *options)
    for part in ("recipe fp8, bfloat16; 2 GPUs (tp 2, pp 1)", "(estimated)", "H100 data sheet", "tokens/s"):
        assert part in text


def test_what_fits_is_printed_in_sixty_columns_also_for_38b_and_a_long_context(
    huge: Path, sized, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.chdir(huge.parent)  # a longer path would stay whole
    text = sized(huge.name, "--roofline", "H100", "--tp", "2", "--batch", "64", "--prompt", "30000")
    assert [line for line in text.splitlines() if len(line) > 60] == []


def test_the_document_shows_what_is_printed(huge: Path, sized, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(PROJECT / "docs/38b.md")
    asked = next(index for index, block in enumerate(blocks) if block.code.startswith("r1v-export inspect SKYWORK"))
    monkeypatch.chdir(huge.parent)
    assert sized(*blocks[asked].code.split()[2:]) == blocks[asked + 1].code


@pytest.mark.parametrize(
    ("options", "weights_gb"),
    [([], 65.5), (["--precision", "fp32"], 131.0), (["--precision", "int4"], 19.2), (["--recipe", "w4a8"], 19.2)],
)
def test_precision_or_recipe_decide_what_weights_take(huge: Path, sized, options, weights_gb: float) -> None:
    found = sized(huge, "--roofline", "H200", *options, "--format", "json")
    assert found["memory_per_gpu"]["language_weight_bytes"] == pytest.approx(weights_gb * 1e9, rel=0.01)


def test_a_cache_in_eight_bits_and_units_that_a_gpu_lacks_are_named(sized) -> None:
    text = sized("r1v-nano", "--roofline", "A100", "--recipe", "fp8-kv")
    assert "(fp8)" in text
    assert "A100 has no matrix units for float8e4m3fn" in text


def test_a_quantized_checkpoint_is_sized_as_it_is(tmp_path: Path, sized, capsys: pytest.CaptureFixture[str]) -> None:
    quantized_copy(Checkpoint.open().folder, tmp_path / "awq", pack_awq, AWQ)
    found = sized(tmp_path / "awq", "--roofline", "L4", "--format", "json")
    whole = sized("r1v-nano", "--roofline", "L4", "--format", "json")
    language = "language_weight_bytes"
    assert found["memory_per_gpu"][language] < 0.5 * whole["memory_per_gpu"][language]
    assert main.run(["inspect", str(tmp_path / "awq"), "--roofline", "L4", "--precision", "fp8"]) == 2
    assert "quantized already (awq)" in capsys.readouterr().err


def test_a_text_prompt_has_no_vision_step(sized) -> None:
    steps = sized("r1v-nano", "--roofline", "L4", "--prompt", "64", "--tiles", "0", "--format", "json")["steps"]
    assert [name.split(",")[0] for name in steps] == ["prefill", "decode"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["r1v-nano", "--roofline", "H100", "--tp", "3"], "cannot share this model's attention heads evenly"),
        (["r1v-nano", "--roofline", "H100", "--precision", "fp8", "--recipe", "int4-awq"], "of another precision"),
        (["r1v-nano", "--roofline", "H999"], "no such device"),
        (["r1v-nano", "--roofline", "H100", "--prompt", "99999"], "longer than the model's context"),
        (["r1v-nano", "--roofline", "H100", "--tiles", "999"], "where:    --tiles 999\n"),
        (["r1v-nano", "--roofline", "H100", "--tiles", "999"], "pass a smaller value of --tiles\n"),
        (["r1v-nano", "--roofline", "H100", "--report", "page.html"], "found:    --roofline H100 of a checkpoint"),
        (["r1v-nano", "--report", "page.html"], "fix:      name a bundle and --roofline GPU"),
        (["r1v-nano", "--tp", "2"], "no effect without --roofline GPU"),
        (["BUNDLE", "--roofline", "H100", "--tp", "2"], "no effect for a bundle"),
        (["BUNDLE", "--offline"], "no effect for a bundle, which is a folder"),
        (["BUNDLE", "--revision", "main"], "no effect for a bundle, which is a folder"),
        (["BUNDLE", "--roofline", "H100", "--target", "onnxruntime"], "no effect with --roofline"),
    ],
)
def test_what_cannot_be_sized_is_refused(
    options: list[str], complaint: str, nano_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"BUNDLE": str(nano_bundle)}
    assert main.run(["inspect", *(places.get(word, word) for word in options)]) == 2
    assert complaint in capsys.readouterr().err
