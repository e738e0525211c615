"""examples/train_nano: what the model is shown, and that its files can be made again."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

batches = pytest.importorskip("batches", reason="examples/train_nano is not part of an installed package")
model_files = pytest.importorskip("model_files")
train = pytest.importorskip("train")

from r1v_export.checkpoint.checkpoint import Checkpoint  # noqa: E402
from r1v_export.nano import scenes  # noqa: E402
from r1v_export.nano.dataset import kind_at, scene_and_questions, seeded  # noqa: E402
from r1v_export.processing.prompt import TEMPLATES, Turn, encode  # noqa: E402
from r1v_export.processing.tokenizer import Tokenizer  # noqa: E402
from r1v_export.reference.model import Model  # noqa: E402


@pytest.fixture(scope="module")
def data(nano: Checkpoint) -> batches.Batches:
    return batches.Batches(
        nano.folder, nano.spec, images=train.IMAGES, count=20, single_tile_batches=10, crowded_batches=5
    )


def test_a_batch_is_a_function_of_its_number(data: batches.Batches):
    first, again, other = data[3], data[3], data[4]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids)


def test_only_replies_are_learned_and_each_label_is_the_next_input(nano: Checkpoint, data: batches.Batches):
    tokenizer = Tokenizer.from_folder(nano.folder)
    end = tokenizer.special_id("<|im_end|>")
    for ids, labels in zip(data[0].ids, data[0].labels, strict=True):
        learned = labels != batches.IGNORED
        starts = [i for i in range(1, len(ids)) if learned[i] and not learned[i - 1]]
        assert len(starts) == batches.QUESTIONS_PER_IMAGE == (labels == end).sum()
        for start in starts:
            assert tokenizer.decode(ids[: start + 1].tolist()).endswith(("assistant\n<think>\n", "assistant\n"))
            stop = start + labels[start:].tolist().index(end)
            assert torch.equal(labels[start:stop], ids[start + 1 : stop + 1])


def test_conclusions_are_what_is_learned_after_the_list_of_what_is_seen(nano: Checkpoint, data: batches.Batches):
    tokenizer = Tokenizer.from_folder(nano.folder)
    for labels, conclusions in zip(data[0].labels, data[0].conclusions, strict=True):
        concluding = conclusions != batches.IGNORED
        assert torch.equal(conclusions[concluding], labels[concluding])
        seen = tokenizer.decode(labels[(labels != batches.IGNORED) & ~concluding].tolist())
        assert seen.count("I see") in (0, batches.QUESTIONS_PER_IMAGE)
        assert "I see" not in tokenizer.decode(conclusions[concluding].tolist())
        assert seen.count(".") == seen.count("I see")


def test_images_are_crowded_at_the_start_only(data: batches.Batches, monkeypatch):
    asked = []
    monkeypatch.setattr(batches, "scene_and_questions", lambda *a: asked.append(a[-1]) or scene_and_questions(*a))
    for number in (4, 5):
        data[number]
    assert set(asked[: train.IMAGES]) == {scenes.CROWD}
    assert set(asked[train.IMAGES :]) == {scenes.MAX_OBJECTS}


def test_a_first_question_is_put_as_a_user_puts_it(nano: Checkpoint, data: batches.Batches):
    tokenizer = Tokenizer.from_folder(nano.folder)
    batch = data[0]
    tiles = batch.pixels.shape[0] // train.IMAGES
    alone = 0
    for index, ids in enumerate(batch.ids.tolist()):
        rng = seeded("train", index)
        size = rng.choice(scenes.SINGLE_TILE_SIZES)
        asked = scene_and_questions(rng, size, kind_at(index), batches.QUESTIONS_PER_IMAGE + 1, scenes.CROWD)[1]
        question = asked[0]
        turns = [Turn("user", question.text, images=1)]
        prompt = encode(tokenizer, TEMPLATES["r1v3"], turns, [tiles], nano.spec.tokens_per_tile)
        alone += ids[: len(prompt)] == prompt
    assert alone >= len(batch.ids) / 2


def test_an_image_token_stands_for_every_row_of_image_embeddings(nano: Checkpoint, data: batches.Batches):
    for number in (0, 12, 15, 18):
        batch = data[number]
        image_tokens = (batch.ids == nano.spec.image_token_id).sum(dim=1)
        tiles_per_image = batch.pixels.shape[0] // train.IMAGES
        assert image_tokens.tolist() == [tiles_per_image * nano.spec.tokens_per_tile] * len(batch.ids)


def test_images_of_several_tiles_come_after_the_start(data: batches.Batches):
    tiles = [data[number].pixels.shape[0] // train.IMAGES for number in range(20)]
    assert set(tiles[:10]) == {1}
    assert set(tiles[10:]) > {1}


def test_the_learning_rate_rises_and_falls_to_almost_nothing_in_each_cycle():
    factors = [train.learning_rate_factor(step) for step in range(train.CYCLES[-1])]
    assert factors[0] == 1 / train.WARMUP_STEPS
    assert factors[300] == 1
    assert 0.1 < factors[train.CYCLES[1]] < factors[train.CYCLES[0]] < 0.5
    assert all(0 < factors[end - 1] < 0.001 for end in train.CYCLES)
    rises = [step for step, (a, b) in enumerate(pairwise(factors), start=1) if a < b]
    assert rises == [*range(1, train.WARMUP_STEPS), *train.CYCLES[:-1]]


def test_every_parameter_has_one_optimizer_and_gets_a_gradient(nano: Checkpoint, data: batches.Batches):
    torch.manual_seed(0)
    model = Model(nano.spec)
    train.initialize(model)
    taken = [p for optimizer in train.optimizers_of(model) for group in optimizer.param_groups for p in group["params"]]
    assert len(taken) == len({id(p) for p in taken}) == len(list(model.parameters()))
    tiny = batches.Batch(data[0].pixels[:2], *(each[:2] for each in data[0][1:]))
    loss, _ = train.loss_and_exact_rows(model, tiny, stressed=False)
    assert train.loss_and_exact_rows(model, tiny, stressed=True)[0] > 1.8 * loss
    assert loss.item() == pytest.approx(torch.tensor(nano.spec.language.vocab_size).log().item(), rel=0.15)
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_saved_run_is_taken_up_where_it_was(nano: Checkpoint, tmp_path: Path):
    model = Model(nano.spec)
    optimizers = train.optimizers_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    train.save(tmp_path / "checkpoint.pt", model, optimizers, step=7)

    fresh = Model(nano.spec)
    fresh_optimizers = train.optimizers_of(fresh)
    assert train.load(tmp_path / "checkpoint.pt", fresh, fresh_optimizers) == 7
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    for before, after in zip(optimizers, fresh_optimizers, strict=True):
        for a, b in zip(before.state.values(), after.state.values(), strict=True):
            assert all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)


def test_the_shipped_configuration_is_what_the_training_code_writes(nano: Checkpoint, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(model_files, "TOKENIZER_SAMPLES", 500)
    model_files.write_model_files(tmp_path)

    def configuration(folder: Path) -> dict:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for of_the_vocabulary in ("vocab_size", "eos_token_id"):
            del config["llm_config"][of_the_vocabulary]
        return config

    assert configuration(tmp_path) == configuration(nano.folder)
    assert (tmp_path / "special_tokens_map.json").read_bytes() == (nano.folder / "special_tokens_map.json").read_bytes()
    written = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    shipped = json.loads((nano.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert written["chat_template"] == shipped["chat_template"]


def test_a_tokenizer_trained_twice_is_the_same(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(model_files, "TOKENIZER_SAMPLES", 500)
    for name in ("first", "second"):
        model_files.write_model_files(tmp_path / name)
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name
