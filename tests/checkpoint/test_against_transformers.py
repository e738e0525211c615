"""transformers reads and writes the native layout: its logits and ours must agree, which proves the name tables."""

from __future__ import annotations

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.names import OLDER_NATIVE_PREFIXES
from r1v_export.checkpoint.presets import INTERNVL3_ROPE
from r1v_export.checkpoint.synth import synthesize
from r1v_export.checkpoint.tensor_file import read_header
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.reference.model import Model, load
from tests.checkpoint.conftest import TINY

INTERNVIT_300M_STYLE = {
    "vision_config.norm_type": "layer_norm",
    "vision_config.qk_normalization": False,
    "vision_config.qkv_bias": True,
}


@pytest.fixture
def image_and_prompt(synth_checkpoint):
    """Two random tiles, and a prompt with their 2 x 16 image tokens between text."""
    generator = torch.Generator().manual_seed(0)
    pixels_T3HW = torch.randn(2, 3, 112, 112, generator=generator)
    image_id = synth_checkpoint.spec.image_token_id
    text = torch.randint(0, 256, (20,), generator=generator).tolist()
    return pixels_T3HW, torch.tensor([text[:7] + [image_id] * 32 + text[7:]])


def our_logits(model: Model, pixels_T3HW: torch.Tensor, input_ids_BS: torch.Tensor) -> torch.Tensor:
    image_embeds = model.image_embeds(pixels_T3HW).flatten(0, 1)
    positions = torch.arange(input_ids_BS.shape[1])[None]
    step = CacheStep(positions, torch.zeros(1, dtype=torch.int64), torch.tensor([positions.shape[1]]))
    rotary = rotary_tables(model.spec.language, positions.shape[1])
    return model.language_model(model.embed(input_ids_BS, image_embeds), rotary, step, None)[0]


def their_logits(folder, pixels_T3HW, input_ids_BS) -> torch.Tensor:
    model = transformers.InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=input_ids_BS, pixel_values=pixels_T3HW).logits


def assert_same_logits(folder, pixels_T3HW, input_ids_BS) -> None:
    theirs = their_logits(folder, pixels_T3HW, input_ids_BS)
    ours = our_logits(load(Checkpoint.open(folder)), pixels_T3HW, input_ids_BS)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("style", [{}, INTERNVIT_300M_STYLE], ids=["internvit-6b style", "internvit-300m style"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_native_synthetic_checkpoint_gives_transformers_logits(tmp_path, image_and_prompt, style, dtype):
    synthesize(tmp_path, preset="nano", layout="internvl", overrides=TINY | style, dtype=dtype, shards=2)
    assert_same_logits(tmp_path, *image_and_prompt)


def test_a_cut_vision_tower_gives_transformers_logits(tmp_path, image_and_prompt):
    synthesize(tmp_path, preset="nano", layout="internvl", overrides=TINY | {"select_layer": -2}, dtype="float32")
    assert Checkpoint.open(tmp_path).spec.vision.num_layers == 3
    assert_same_logits(tmp_path, *image_and_prompt)


@pytest.mark.parametrize(
    "scaling",
    [
        INTERNVL3_ROPE,
        {"type": "linear", "factor": 2.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda scaling: scaling["type"],
)
def test_a_scaled_rope_gives_transformers_logits(tmp_path, image_and_prompt, scaling):
    scaled = TINY | {"llm_config.rope_scaling": scaling, "llm_config.max_position_embeddings": 64}
    synthesize(tmp_path, preset="nano", layout="internvl", overrides=scaled, dtype="float32")
    text_config = transformers.AutoConfig.from_pretrained(tmp_path).text_config
    assert text_config.rope_parameters["rope_type"] == scaling["type"]
    assert_same_logits(tmp_path, *image_and_prompt)


def test_tied_embeddings_give_transformers_logits(tmp_path, image_and_prompt):
    tied = TINY | {"llm_config.tie_word_embeddings": True}
    synthesize(tmp_path, preset="nano", layout="internvl", overrides=tied, dtype="float32")
    assert "lm_head.weight" not in read_header(tmp_path / "model.safetensors")
    assert_same_logits(tmp_path, *image_and_prompt)


def test_what_transformers_saves_is_read(tmp_path, image_and_prompt):
    source, saved = tmp_path / "source", tmp_path / "saved"
    synthesize(source, preset="nano", layout="internvl", overrides=TINY, dtype="float32")
    model = transformers.InternVLForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    model.save_pretrained(saved)
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (saved / name).write_bytes((source / name).read_bytes())
    assert_same_logits(saved, *image_and_prompt)
    assert Checkpoint.open(saved).spec == Checkpoint.open(source).spec


def test_the_older_native_prefixes_are_read(tmp_path):
    synthesize(tmp_path, preset="nano", layout="internvl", overrides=TINY, dtype="float32")
    new = Checkpoint.open(tmp_path)
    expected = {name: new.read(name).clone() for name in new.tensors}
    path = tmp_path / "model.safetensors"
    save_file({older_name(name): tensor.clone() for name, tensor in load_file(path).items()}, path)
    older = Checkpoint.open(tmp_path)
    assert "vision_tower.embeddings.cls_token" in read_header(path)
    assert all(torch.equal(older.read(name), tensor) for name, tensor in expected.items())


def older_name(name: str) -> str:
    return next(old + name.removeprefix(new) for new, old in OLDER_NATIVE_PREFIXES.items() if name.startswith(new))


def test_the_language_model_gives_the_logits_of_transformers_qwen2(synth_checkpoint):
    ours = load(synth_checkpoint)
    language = synth_checkpoint.spec.language
    config = transformers.Qwen2Config(
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.intermediate_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads,
        num_key_value_heads=language.num_kv_heads,
        rms_norm_eps=language.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
        tie_word_embeddings=False,
    )
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.load_state_dict(ours.language_model.state_dict(), strict=True)
    input_ids_BS = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(1))
    logits = our_logits(ours, torch.zeros(1, 3, 112, 112), input_ids_BS)
    with torch.no_grad():
        torch.testing.assert_close(logits, theirs(input_ids=input_ids_BS).logits, atol=2e-5, rtol=1e-4)
