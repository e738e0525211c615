"""What pipeline.json says of prompts is what `processing.prompt` does, for every family version."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from r1v_export.checkpoint.config import read_configuration
from r1v_export.checkpoint.presets import PRESETS
from r1v_export.checkpoint.synth_files import write_auxiliary_files
from r1v_export.model_spec import ModelSpec
from r1v_export.processing.pipeline_document import check_pipeline, describe_pipeline, document_template
from r1v_export.processing.prompt import Turn, encode, stop_ids, template_of
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.serialized.pipeline import PipelineDocument

CONVERSATIONS: dict[str, list[Turn]] = {
    "question": [Turn("user", "What is 7 x 8?")],
    "image": [Turn("user", "How many?", images=1)],
    "images in the text": [Turn("user", "Is <image> left of <image>?\n", images=2)],
    "images before the text": [Turn("user", "Which is larger?", images=2)],
    "image alone": [Turn("user", "", images=1)],
    "system": [Turn("system", "Be brief."), Turn("user", " Why? ")],
    "no system": [Turn("system", ""), Turn("user", "Why?")],
    "placeholder without an image": [Turn("user", "What does <image> mean?")],
    "past answers": [
        Turn("user", "a", images=1),
        Turn("assistant", "<think>\nlong</think> no </think>\n\nb"),
        Turn("user", "c <image>", images=1),
        Turn("assistant", "\n plain"),
        Turn("user", "d"),
    ],
    "look-alikes": [Turn("user", "<|im_end|> <think> </think> <IMG_CONTEXT> <｜User｜> naïve 你好")],
}


@pytest.fixture(scope="module", params=PRESETS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Tokenizer]:
    preset, folder = PRESETS[request.param], tmp_path_factory.mktemp("family")
    write_auxiliary_files(folder, preset.config(), preset)
    configuration = read_configuration(folder, stores_lm_head=True, stored_dtype="bfloat16")
    return configuration.spec, Tokenizer.from_folder(folder)


def written(document: PipelineDocument) -> dict[str, Any]:
    return json.loads(document.to_json())


def render(
    pipeline: dict[str, Any],
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    tiles: list[int],
    think: bool,
    grounding: bool = False,
) -> list[int]:
    """Ids by the file alone; the tokenizer only tokenizes text."""
    shown_tokens = {piece["token"]: piece for piece in pipeline["prompt"]["grounding_tokens"] if grounding}

    def literal(text: str) -> list[dict[str, Any]]:
        pattern = "|".join(map(re.escape, shown_tokens))
        parts = re.split(f"({pattern})", text) if shown_tokens else [text]
        return [shown_tokens.get(part, {"text": part}) for part in parts]

    rules, shown = pipeline["prompt"], iter(tiles)
    pieces = [*rules["begin"]]
    if turns[0].role != "system":
        turns = [Turn("system", rules["default_system"]), *turns]
    for turn in turns:
        if turn.role == "system" and not turn.text:
            continue
        text, frame, images = turn.text, rules[turn.role], rules["images"]
        if turn.role == "assistant":
            past = rules["past_answer"]
            text = text.split(past["starts_after"])[-1] if past["starts_after"] else text
            while past["strip_leading"] and text.startswith(tuple(past["strip_leading"])):
                text = text[1:]
        if turn.images and images["placeholder"] not in text:
            text = images["default_position"] * turn.images + text
        first, *rest = text.split(images["placeholder"]) if turn.images else [text]
        pieces += [*frame["before"], *literal(first)]
        for part in rest:
            context = [images["context"]] * (next(shown) * images["tokens_per_tile"])
            pieces += [images["start"], *context, images["end"], *literal(part)]
        pieces += frame["after"]
    pieces += [*rules["assistant"]["before"], *(rules["thinking"] if think else [])]
    ids, held = [], ""
    for piece in pieces:
        if "text" in piece:
            held += piece["text"]
        else:
            ids += [*tokenizer.encode_text(held), piece["id"]]
            held = ""
    return ids + tokenizer.encode_text(held)


@pytest.mark.parametrize("think", [True, False], ids=["thinking", "not thinking"])
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_prompt_by_the_file_is_the_reference_s(family, turns: list[Turn], think: bool) -> None:
    spec, tokenizer = family
    document = describe_pipeline(spec, tokenizer, {})
    tiles = [1 + index for index in range(sum(turn.images for turn in turns))]
    expected = encode(tokenizer, template_of(spec), turns, tiles, spec.tokens_per_tile, think=think)
    assert render(written(document), tokenizer, turns, tiles, think) == expected
    read = PipelineDocument.model_validate_json(document.to_json())
    assert encode(tokenizer, document_template(read), turns, tiles, read.tokens_per_tile, think=think) == expected


GROUNDED = [
    Turn("system", "Mark <quad>corners</quad>."),
    Turn("user", "<ref>x</ref> in <image>, <box>[[1, 2]]</box> <|im_end|> <ref >", images=1),
    Turn("assistant", "<think><ref></think>\n<ref>the cat</ref><box>[[3]]</box>"),
    Turn("user", "<ref>x</ref>"),
]


@pytest.mark.parametrize("grounding", [True, False], ids=["grounding", "plain"])
@pytest.mark.parametrize("turns", [GROUNDED, GROUNDED[-1:]], ids=["conversation", "question"])
def test_grounding_by_the_file_is_the_reference_s(family, turns: list[Turn], grounding: bool) -> None:
    spec, tokenizer = family
    pipeline = written(describe_pipeline(spec, tokenizer, {}))
    listed = {piece["token"]: piece["id"] for piece in pipeline["prompt"]["grounding_tokens"]}
    used = tokenizer.with_grounding() if grounding else tokenizer
    tiles = [2] * sum(turn.images for turn in turns)
    ids = render(pipeline, tokenizer, turns, tiles, True, grounding)
    assert ids == encode(used, template_of(spec), turns, tiles, spec.tokens_per_tile)
    marks = [listed[name] for name in ("<ref>", "</ref>") if name in listed]
    inside = [id_ for id_ in ids if id_ in listed.values()]
    assert inside[-2:] == (marks if grounding else [])
    assert bool(inside) == (grounding and bool(listed))


def test_with_grounding_decoded_text_shows_the_listed_tokens_and_no_other_hidden_one(family) -> None:
    spec, tokenizer = family
    pipeline = written(describe_pipeline(spec, tokenizer, {}))
    listed = {piece["token"] for piece in pipeline["prompt"]["grounding_tokens"]}
    grounded = tokenizer.with_grounding()
    for token in pipeline["tokenizer"]["added_tokens"]:
        shown = not token["hidden"] or token["token"] in listed
        assert grounded.decode([token["id"]]) == (token["token"] if shown else "")
        assert tokenizer.decode([token["id"]]) == ("" if token["hidden"] else token["token"])


def test_the_file_lists_grounding_tokens_where_the_tokenizer_has_them(family) -> None:
    spec, tokenizer = family
    pipeline = written(describe_pipeline(spec, tokenizer, {}))
    added = {token["token"]: token["id"] for token in pipeline["tokenizer"]["added_tokens"]}
    names = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
    expected = [{"token": name, "id": added[name]} for name in names if name in added]
    assert pipeline["prompt"]["grounding_tokens"] == expected


def test_stop_ids_tiling_and_sizes_are_the_checkpoint_s(family) -> None:
    spec, tokenizer = family
    document = describe_pipeline(spec, tokenizer, {"eos_token_id": [3]})
    read = PipelineDocument.model_validate_json(document.to_json())
    assert read == document
    assert read.stop_ids == stop_ids(tokenizer, template_of(spec), {"eos_token_id": [3]})
    assert (read.tiling.spec, read.tokens_per_tile) == (spec.tiling, spec.tokens_per_tile)
    assert (read.image_token_id, read.positions.max_positions) == (
        spec.image_token_id,
        spec.language.max_position_embeddings,
    )
    check_pipeline(read, tokenizer, "pipeline.json")


def test_an_image_has_at_most_as_many_tiles_as_the_file_says(family) -> None:
    tiling = family[0].tiling
    fixed = tiling.model_copy(update={"dynamic": False})
    assert tiling.max_tiles_per_image == tiling.max_tiles + 1
    assert fixed.max_tiles_per_image == 1
    spec = family[0].model_copy(update={"tiling": fixed})
    document = describe_pipeline(spec, family[1], {})
    assert [(grid.cols, grid.rows) for grid in document.tiling.grids] == [(1, 1)]


def test_a_tokenizer_json_made_of_the_older_files_reads_as_the_same_tokenizer(tmp_path: Path) -> None:
    preset = PRESETS["r1v2-38b"]
    write_auxiliary_files(tmp_path, preset.config(), preset)
    tokenizer = Tokenizer.from_folder(tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    (again / "tokenizer.json").write_text(json.dumps(tokenizer.definition()), encoding="utf-8")
    same = Tokenizer.from_folder(again)
    assert same.added_tokens == tokenizer.added_tokens
    for text in ("How many? 123 naïve 你好 \n\n x", "<think>a</think>"):
        assert same.encode_text(text) == tokenizer.encode_text(text)
        assert same.decode(same.encode_text(text)) == text


def test_the_default_sampling_is_that_of_generation_config(family) -> None:
    spec, tokenizer = family
    recommended = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    sampling = describe_pipeline(spec, tokenizer, recommended).default_sampling
    assert sampling is not None
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 50)
    assert describe_pipeline(spec, tokenizer, {"do_sample": True, "temperature": -1}).default_sampling is None
