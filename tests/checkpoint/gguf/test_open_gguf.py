"""GGUF files as checkpoints: this package's own, others' as gguf-py writes them, and what is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import gguf
import numpy as np
import pytest
import torch

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.synth import synthesize
from r1v_export.config import BuildConfig
from r1v_export.errors import CapabilityError, CheckpointError, R1VError, UsageError
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.targets.gguf.write.files import write_gguf

LAYER_NORM = {
    "vision_config.norm_type": "layer_norm",
    "vision_config.qk_normalization": False,
    "vision_config.qkv_bias": True,
}
OURS = ("r1v_export.version", "r1v_export.tower_channels", "r1v_export.template")
POSITION = "v.position_embd.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("source") / "model"
    sizes = {"vision_layers": 1, "language_layers": 1}
    return Checkpoint.open(synthesize(folder, preset="nano", overrides=LAYER_NORM, **sizes))


@pytest.fixture(scope="module")
def files(source: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_gguf(source, None, BuildConfig(precision="bf16", targets=("gguf",)), folder)
    return folder


def rewrite(
    path: Path,
    keys: Mapping[str, object] | None = None,
    tensors: Mapping[str, tuple[np.ndarray, gguf.GGMLQuantizationType]] | None = None,
    drop: tuple[str, ...] = (),
) -> None:
    """The same file with other values of keys, other tensors, or without some of either, by gguf-py's own writer."""
    reader = gguf.GGUFReader(path)
    changed = dict(keys or {})
    architecture = changed.pop("general.architecture", reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(path.with_suffix(".new"), str(architecture))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in drop:
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, changed.get(key, field.contents()), kind, sub_type=sub)
    for tensor in reader.tensors:
        data, kind = (tensors or {}).get(tensor.name, (np.array(tensor.data), tensor.tensor_type))
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


@pytest.fixture
def copy(files: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(files, tmp_path / "copy"))


@pytest.mark.parametrize("changes", [{}, LAYER_NORM], ids=["widened", "as it is"])
def test_files_of_this_package_give_the_checkpoint_back(changes, tmp_path) -> None:
    sizes = {"vision_layers": 2, "language_layers": 1}
    source = Checkpoint.open(synthesize(tmp_path / "m", preset="nano", overrides=changes, **sizes))
    write_gguf(source, None, BuildConfig(precision="bf16", targets=("gguf",)), tmp_path)
    read = Checkpoint.open(tmp_path / "model.gguf")
    assert read.spec == source.spec
    assert all(torch.equal(read.read(name).float(), source.read(name).float()) for name in source.tensors)
    ours, theirs = (Tokenizer.from_folder(each.folder) for each in (read, source))
    assert ours.encode_text("Größe 12 中") == theirs.encode_text("Größe 12 中")
    assert {name: token.id for name, token in ours.added_tokens.items()} == {
        name: token.id for name, token in theirs.added_tokens.items()
    }


def test_files_of_another_converter_have_positions_in_the_published_order(copy: Path, source: Checkpoint) -> None:
    published = source.read("vision_model.embeddings.position_embedding")[0].float().numpy()
    f32 = gguf.GGMLQuantizationType.F32
    rewrite(copy / "mmproj.gguf", tensors={POSITION: (published, f32)}, drop=OURS)
    rewrite(copy / "model.gguf", drop=OURS)
    read = Checkpoint.open(copy / "model.gguf")
    assert read.spec.template == "r1v3"  # of the chat template's <think>
    for name in source.tensors:
        assert torch.equal(read.read(name).float(), source.read(name).float()), name


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F16"])
def test_every_type_is_read_as_gguf_py_dequantizes_it(copy: Path, kind: str) -> None:
    qtype = gguf.GGMLQuantizationType[kind]
    name, rows, columns = "blk.0.ffn_up.weight", 512, 256
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    if kind.endswith("K"):  # gguf-py has no quantizer: any bytes are values, with finite scales
        data = np.random.default_rng(0).integers(0, 60, (rows, columns // block * size), np.uint8)
    else:
        weight = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
        data = gguf.quants.quantize(weight, qtype)
    rewrite(copy / "model.gguf", tensors={name: (data, qtype)})
    read = Checkpoint.open(copy / "model.gguf").read("language_model.model.layers.0.mlp.up_proj.weight")
    assert np.array_equal(read.float().numpy(), gguf.quants.dequantize(data, qtype))


def with_type(kind: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        qtype = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[qtype]
        data = np.zeros((512, 256 // block * size), np.uint8)
        rewrite(folder / "model.gguf", tensors={"blk.0.ffn_up.weight": (data, qtype)})

    return change


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "of type IQ4_XS": (with_type("IQ4_XS"), "IQ4_XS"),
    "a Llama": (lambda f: rewrite(f / "model.gguf", {"general.architecture": "llama"}), "qwen2"),
    "another projector": (lambda f: rewrite(f / "mmproj.gguf", {"clip.projector_type": "mlp"}), "internvl"),
    "another tokenizer": (lambda f: rewrite(f / "model.gguf", {"tokenizer.ggml.pre": "llama-bpe"}), "deepseek-r1-qwen"),
    "no epsilon": (
        lambda f: rewrite(f / "model.gguf", drop=("qwen2.attention.layer_norm_rms_epsilon",)),
        "layer_norm_rms_epsilon",
    ),
    "a tensor too few": (lambda f: rewrite(f / "model.gguf", drop=("blk.0.attn_q.weight",)), "q_proj"),
    "no mmproj file": (lambda f: (f / "mmproj.gguf").unlink(), "two files"),
    "two mmproj files": (lambda f: shutil.copy(f / "mmproj.gguf", f / "mmproj-2.gguf"), "two files"),
    "an empty file": (lambda f: (f / "model.gguf").write_bytes(b""), "cannot be used"),
    "a missing file": (lambda f: (f / "model.gguf").unlink(), "no file"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_read_is_refused_by_name(copy: Path, case: str) -> None:
    change, named = CASES[case]
    change(copy)
    with pytest.raises(CheckpointError, match=named):
        Checkpoint.open(copy / "model.gguf")


@pytest.mark.parametrize("name", ["model.gguf", "mmproj.gguf"])
def test_damaged_files_end_in_our_errors(copy: Path, name: str) -> None:
    random, sound = Random(0), (copy / name).read_bytes()
    header = len(sound) - sum(tensor.n_bytes for tensor in gguf.GGUFReader(copy / name).tensors)
    for _ in range(60):
        content = bytearray(sound[: random.randrange(len(sound))] if random.random() < 0.3 else sound)
        for _ in range(random.randrange(1, 4)):
            place = random.randrange(max(1, min(header, len(content) - 8)))
            content[place : place + 8] = random.randbytes(8)
        (copy / name).write_bytes(content)
        try:
            checkpoint = Checkpoint.open(copy / "model.gguf")
            checkpoint.read("language_model.model.norm.weight")
        except R1VError:
            continue


def test_a_revision_and_a_missing_package_are_errors_of_ours(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="hub id"):
        Checkpoint.open(files / "model.gguf", revision="main")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match="pip install 'gguf"):
        Checkpoint.open(files / "model.gguf")
