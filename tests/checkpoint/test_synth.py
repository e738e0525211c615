"""Synthetic checkpoints: official layouts, deterministic, of any size."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from r1v_export.checkpoint import synth
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.synth import synthesize
from r1v_export.checkpoint.tensor_store import INDEX_NAME
from r1v_export.errors import CapabilityError, CheckpointError, UsageError
from tests.checkpoint.conftest import TINY


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def weights(folder):
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", ["internvl_chat", "internvl"])
def test_every_preset_is_a_valid_checkpoint_at_its_full_size(tmp_path, preset, layout):
    checkpoint = Checkpoint.open(synthesize(tmp_path, preset=preset, layout=layout, weights="empty"))
    config = PRESETS[preset].config()
    assert checkpoint.spec.vision.num_layers == config["vision_config"]["num_hidden_layers"]
    assert checkpoint.spec.language.num_layers == config["llm_config"]["num_hidden_layers"]
    assert checkpoint.spec.image_token_id == PRESETS[preset].tokens["<IMG_CONTEXT>"]


@pytest.mark.parametrize(
    ("preset", "template"),
    [
        ("r1v1-38b", "r1v1"),
        ("r1v2-38b", "r1v2"),
        ("r1v3-38b", "r1v3"),
        ("internvl2_5-38b", "internvl2_5"),
        ("internvl3-1b", "internvl2_5"),
        ("nano", "r1v3"),
    ],
)
def test_each_family_version_gets_its_own_prompt(tmp_path, preset, template):
    folder = synthesize(tmp_path, preset=preset, vision_layers=1, language_layers=1, weights="empty")
    assert Checkpoint.open(folder).spec.template == template


def test_layers_and_widths_can_be_chosen(tmp_path):
    folder = synthesize(
        tmp_path, preset="r1v3-38b", vision_layers=2, language_layers=3, overrides=TINY, weights="empty"
    )
    spec = Checkpoint.open(folder).spec
    assert (spec.vision.num_layers, spec.language.num_layers, spec.language.hidden_size) == (2, 3, 64)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(tmp_path / name, preset="nano", overrides=TINY, seed=seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert {name for name in a if a[name] != c[name]} == {"model.safetensors"}


def test_layout_and_shards_do_not_change_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "_CHUNK", 1000)  # so that q, k and v begin and end inside chunks
    variants = [{}, {"shards": 3}, {"layout": "internvl"}, {"layout": "internvl", "shards": 2}]
    found = [
        weights(synthesize(tmp_path / str(i), preset="nano", overrides=TINY, **variant))
        for i, variant in enumerate(variants)
    ]
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].items())


def test_no_two_tensors_are_alike_and_their_scale_is_sane(tmp_path):
    tensors = weights(synthesize(tmp_path, preset="nano", dtype="float32"))
    assert len({hashlib.sha256(t.numpy().tobytes()).digest() for t in tensors.values()}) == len(tensors)
    for name, tensor in tensors.items():
        is_norm_weight = "norm" in name or name == "mlp1.0.weight"
        center = 1.0 if is_norm_weight else 0.1 if name.endswith((".ls1", ".ls2")) else 0.0
        assert abs(tensor.mean() - center) < 0.01, name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_dtype_can_be_chosen(tmp_path, dtype):
    checkpoint = Checkpoint.open(synthesize(tmp_path, preset="nano", overrides=TINY, dtype=dtype))
    assert checkpoint.spec.dtype == dtype
    assert {info.dtype for info in checkpoint.tensors.values()} == {getattr(torch, dtype)}


def test_the_safetensors_library_reads_the_shards(sharded):
    checkpoint = Checkpoint.open(sharded)
    assert (sharded / INDEX_NAME).exists()
    for path in checkpoint.files():
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    assert torch.equal(file.get_tensor(name), checkpoint.read(name))


def test_an_empty_checkpoint_has_its_true_size_takes_no_disk_and_reads_as_zeros(tmp_path):
    synthesize(tmp_path / "full", preset="nano", shards=2)
    synthesize(tmp_path / "empty", preset="nano", shards=2, weights="empty")
    for full in (tmp_path / "full").glob("*.safetensors"):
        holes = (tmp_path / "empty" / full.name).stat()
        assert holes.st_size == full.stat().st_size
        assert holes.st_blocks * 512 < 100_000
    assert not any(tensor.any() for tensor in weights(tmp_path / "empty").values())


def test_a_sparse_checkpoint_has_its_true_size_values_in_every_tensor_and_takes_an_eighth_of_the_disk(tmp_path):
    wide = {"llm_config.hidden_size": 8192, "llm_config.intermediate_size": 16384, "llm_config.vocab_size": 8192}
    synthesize(tmp_path, preset="nano", vision_layers=1, language_layers=1, overrides=wide, weights="sparse")
    file = (tmp_path / "model.safetensors").stat()
    assert file.st_blocks * 512 < file.st_size / 7
    for name, tensor in weights(tmp_path).items():
        values, filled = tensor.flatten(), min(tensor.numel(), 1 << 17) if tensor.ndim > 1 else tensor.numel()
        assert values[:filled].count_nonzero() > 0.99 * filled, name
        assert not values[filled : 1 << 20].any()


def test_layout_and_shards_do_not_change_sparse_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "_SPARSE_BLOCK", 1000)  # so that q, k and v begin and end inside blocks
    monkeypatch.setattr(synth, "_SPARSE_RUN", 300)
    variants = [{}, {"shards": 3}, {"layout": "internvl"}]
    a, b, c = (
        weights(synthesize(tmp_path / str(i), preset="nano", overrides=TINY, weights="sparse", **variant))
        for i, variant in enumerate(variants)
    )
    for other in (b, c):
        assert other.keys() == a.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in a.items())


GROUPS = {"llm_config.hidden_size": 1024, "llm_config.intermediate_size": 2048}  # 8 and 16 of 128 inputs
ONE_LAYER = {"preset": "nano", "vision_layers": 1, "language_layers": 1, "overrides": GROUPS, "awq": True}


@pytest.mark.parametrize("layout", ["internvl_chat", "internvl"])
def test_a_checkpoint_in_awqs_layout_is_read_as_one_with_sane_weights(tmp_path, layout):
    checkpoint = Checkpoint.open(synthesize(tmp_path, **ONE_LAYER, layout=layout))
    assert len(checkpoint.quantized.linears) == 7
    for name, linear in checkpoint.quantized.linears.items():
        decoded = linear.decode()
        assert decoded.qweight.unique().tolist() == list(range(16)), name
        assert decoded.zero_point.unique().tolist() == [7, 8], name
        weight = decoded.weight()
        assert abs(weight.mean()) < 0.001, name
        assert abs(weight.std() - 0.02) < 0.001, name


def test_layout_and_shards_do_not_change_a_checkpoint_in_awqs_layout(tmp_path):
    folders = [
        synthesize(tmp_path / "a", **ONE_LAYER, weights="sparse"),
        synthesize(tmp_path / "b", **ONE_LAYER, weights="sparse", layout="internvl", shards=2),
    ]
    a, b = (weights(folder) for folder in folders)
    assert a.keys() == b.keys()
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_of_a_sparse_checkpoint_in_awqs_layout_an_eighth_of_the_groups_is_not_zero(tmp_path):
    checkpoint = Checkpoint.open(synthesize(tmp_path, **ONE_LAYER, weights="sparse"))
    for name, linear in checkpoint.quantized.linears.items():
        groups = linear.decode().weight().unflatten(1, (-1, 128))
        assert groups[:, ::8].count_nonzero() > 0.9 * groups[:, ::8].numel(), name
        assert groups.count_nonzero() == groups[:, ::8].count_nonzero(), name


def test_awqs_groups_have_to_divide_a_linears_inputs(tmp_path):
    with pytest.raises(UsageError, match=r"(?s)q_proj.*multiple of 128.*64"):
        synthesize(tmp_path / "m", preset="nano", overrides=TINY, awq=True)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("preset", ["r1v1-38b", "r1v2-38b", "r1v3-38b"])
def test_the_tokenizer_has_the_official_ids_and_keeps_any_text(tmp_path, preset):
    synthesize(tmp_path, preset=preset, vision_layers=1, language_layers=1, weights="empty")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for token, token_id in PRESETS[preset].tokens.items():
        assert tokenizer.encode(token).ids == [token_id]
        assert tokenizer.id_to_token(token_id) == token
    text = "What's in the 3 images? 你好 \U0001f600\n\tdéjà vu"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_added_tokens_move_down_into_a_small_vocabulary(tmp_path):
    overrides = TINY | {"llm_config.vocab_size": 300}
    synthesize(tmp_path, preset="internvl3-38b", overrides=overrides, vision_layers=1, language_layers=1)
    assert Checkpoint.open(tmp_path).spec.image_token_id == 300 - 12 + 5


MEASURE = """
import sys
from r1v_export.checkpoint.synth import synthesize
from r1v_export.runner.bench import peak_memory_bytes as peak
synthesize(sys.argv[1] + "/small", preset="nano", vision_layers=1, language_layers=1)
before = peak()
synthesize(sys.argv[1] + "/large", preset="nano", overrides={"llm_config.vocab_size": 150_000})
print(peak() - before)
"""


def test_writing_holds_one_chunk_and_not_the_tensor(tmp_path):
    """The two largest tensors are 77 MB each, and 154 MB while they are still float32."""
    command = [sys.executable, "-c", MEASURE, tmp_path]
    growth = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert growth < 9 * synth._CHUNK  # a chunk in float32 and in bfloat16 takes 8; a whole tensor would take 13


def test_progress_counts_every_byte(tmp_path):
    calls = []
    synthesize(tmp_path, preset="nano", overrides=TINY, on_progress=lambda done, total: calls.append((done, total)))
    total = sum(info.nbytes for info in Checkpoint.open(tmp_path).tensors.values())
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match=r"(?s)r1v3-38b.*r1v9"):
        synthesize(tmp_path, preset="r1v9")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        synthesize(tmp_path, preset="nano")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interruption_leaves_nothing_behind(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "new", preset="nano", on_progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path):
    with pytest.raises(UsageError, match="vocabulary is too small"):
        synthesize(tmp_path, preset="nano", overrides={"llm_config.vocab_size": 200})


@pytest.mark.parametrize("layout", ["internvl_chat", "internvl"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llm_config.num_key_value_heads", 3),
        ("llm_config.vocab_size", "many"),
        ("downsample_ratio", "half"),
        ("vision_config.patch_size", 0),
    ],
)
def test_overrides_that_make_no_model_are_refused_and_leave_nothing(tmp_path, key, value, layout):
    with pytest.raises(CheckpointError, match=key.split(".")[-1]):
        synthesize(tmp_path / "m", preset="nano", overrides={key: value}, layout=layout)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("layout", ["internvl_chat", "internvl"])
def test_overrides_may_leave_keys_to_their_defaults(tmp_path, layout):
    overrides = TINY | {"force_image_size": None, "min_dynamic_patch": None, "vision_config.qkv_bias": None}
    spec = Checkpoint.open(synthesize(tmp_path, preset="nano", overrides=overrides, layout=layout)).spec
    assert (spec.tiling.tile_size, spec.tiling.min_tiles, spec.vision.qkv_bias) == (112, 1, False)


def test_the_native_layouts_tokenizer_has_what_transformers_processor_asks_for(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(synthesize(tmp_path, preset="nano", overrides=TINY, layout="internvl"))
    tokens = [tokenizer.start_image_token, tokenizer.context_image_token, tokenizer.end_image_token]
    assert tokens == ["<img>", "<IMG_CONTEXT>", "</img>"]
    assert tokenizer.video_token == "<video>"
    assert tokenizer.context_image_token_id == Checkpoint.open(tmp_path).spec.image_token_id


def test_an_override_inside_a_number_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"force_image_size\.side"):
        synthesize(tmp_path, preset="nano", overrides={"force_image_size.side": 3})


def test_too_little_disk_is_noticed_before_anything_large_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(synth.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(CapabilityError, match=r"(?s)not enough disk.*1[12]\.\d|0\.0 GB free"):
        synthesize(tmp_path, preset="nano")
    assert not list(tmp_path.glob("*.safetensors"))
