"""What llama.cpp tokenizes and prompts with, and tokenizers that it has not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import CheckpointError
from r1v_export.targets.gguf.write.vocabulary import add_vocabulary


def keys_of(folder: Path, out: Path) -> dict[str, object]:
    checkpoint = Checkpoint.open(folder)
    writer = gguf.GGUFWriter(out, "qwen2")
    add_vocabulary(writer, folder, checkpoint.spec, checkpoint.generation_config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {key: field.contents() for key, field in gguf.GGUFReader(out).fields.items()}


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    shutil.copytree(Checkpoint.open().folder, tmp_path / "nano")
    return tmp_path / "nano"


def test_every_row_of_the_embedding_has_a_token_of_its_kind(nano, tmp_path) -> None:
    keys = keys_of(nano, tmp_path / "v.gguf")
    definition = json.loads((nano / "tokenizer.json").read_text())
    texts = {id_: text for text, id_ in definition["model"]["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in definition["added_tokens"]}
    assert keys["tokenizer.ggml.tokens"] == [texts[row] for row in range(506)]
    special = {token["id"] for token in definition["added_tokens"] if token["special"]}
    types = keys["tokenizer.ggml.token_type"]
    assert [row for row, kind in enumerate(types) if kind == gguf.TokenType.CONTROL] == sorted(special)
    assert keys["tokenizer.ggml.merges"] == [" ".join(merge) for merge in definition["model"]["merges"]]


def test_stop_tokens_and_chat_template_are_the_checkpoints(nano, tmp_path) -> None:
    keys = keys_of(nano, tmp_path / "v.gguf")
    assert {keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]} == {496, 494}
    assert keys["tokenizer.ggml.add_bos_token"] is False
    declared = json.loads((nano / "tokenizer_config.json").read_text())["chat_template"]
    assert keys["tokenizer.chat_template"] == declared
    (nano / "chat_template.jinja").write_text("{{ messages }}")
    assert keys_of(nano, tmp_path / "w.gguf")["tokenizer.chat_template"] == "{{ messages }}"


def test_a_tokenizer_of_bytes_alone_has_a_merge_that_never_applies(sources, tmp_path) -> None:
    keys = keys_of(sources["6b"].folder, tmp_path / "v.gguf")
    (merge,) = keys["tokenizer.ggml.merges"]
    assert not set(merge.split(" ")) & set(keys["tokenizer.ggml.tokens"])
    assert keys["tokenizer.ggml.tokens"][600] == "[PAD600]"
    assert keys["tokenizer.ggml.token_type"][600] == gguf.TokenType.UNUSED


def test_another_split_pattern_is_refused(nano, tmp_path) -> None:
    definition = json.loads((nano / "tokenizer.json").read_text())
    definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|\p{N}+|\s+|."
    (nano / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(CheckpointError, match=r"llama\.cpp does not split text"):
        keys_of(nano, tmp_path / "v.gguf")


def test_more_stop_tokens_than_there_are_keys_are_refused(nano, tmp_path) -> None:
    path = nano / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [494, 495, 496, 497]}))
    with pytest.raises(CheckpointError, match="so many tokens that end an answer"):
        keys_of(nano, tmp_path / "v.gguf")
