"""The tokenizer and the chat template as keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf

from r1v_export.checkpoint_json import read_json_object
from r1v_export.errors import CheckpointError
from r1v_export.files import read_regular_text
from r1v_export.model_spec import ModelSpec
from r1v_export.processing.prompt import stop_ids, template_of
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.processing.tokenizer_files import QWEN2_PATTERN
from r1v_export.quoting import shorten_value

_PRE_TOKENIZER = "qwen2"
"""llama.cpp's name for Qwen2's split pattern."""
_STOP_KEYS = ("add_eos_token_id", "add_eot_token_id", "add_eom_token_id")
"""llama.cpp ends an answer at each of them."""


def add_vocabulary(
    writer: gguf.GGUFWriter, folder: Path, spec: ModelSpec, generation_config: Mapping[str, Any]
) -> None:
    """Add everything that llama.cpp tokenizes and prompts with.

    Args:
        folder: the checkpoint's.

    Raises:
        CheckpointError: llama.cpp splits text in another way than the tokenizer does, or the answer ends at more
            tokens than it knows.
    """
    tokenizer = Tokenizer.from_folder(folder)
    definition = tokenizer.definition()
    _check_pre_tokenizer(definition, folder)
    tokens, types = _tokens(definition, spec.language.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(_merges(definition) or [_NO_MERGE])
    _add_special_ids(writer, folder, tokenizer, spec, generation_config)
    template = _chat_template(folder)
    if template is not None:
        writer.add_chat_template(template)


_NO_MERGE = "<|no_merge|> <|no_merge|>"
"""For a tokenizer of bytes alone, as `synth` makes: llama.cpp asks for a merge, and this one never applies."""


def _tokens(definition: Mapping[str, Any], rows: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Text and type of each row of the embedding; rows without a token are unused ones."""
    tokens, types = [f"[PAD{row}]" for row in range(rows)], [gguf.TokenType.UNUSED] * rows
    for text, row in definition["model"]["vocab"].items():
        if row < rows:
            tokens[row], types[row] = text, gguf.TokenType.NORMAL
    for added in definition["added_tokens"]:
        if added["id"] < rows:
            types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    return tokens, types


def _merges(definition: Mapping[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"]["merges"]]


def _add_special_ids(
    writer: gguf.GGUFWriter,
    folder: Path,
    tokenizer: Tokenizer,
    spec: ModelSpec,
    generation_config: Mapping[str, Any],
) -> None:
    template = template_of(spec)
    first = tokenizer.special_id(template.stop_tokens[0])
    ids = [first, *sorted(stop_ids(tokenizer, template, generation_config) - {first})]
    if len(ids) > len(_STOP_KEYS):
        raise CheckpointError(
            "GGUF has no place for so many tokens that end an answer.",
            where=folder / "generation_config.json",
            expected=f"at most {len(_STOP_KEYS)}",
            found=", ".join(map(str, ids)),
            fix="name fewer of them in eos_token_id",
        )
    for add, id_ in zip(_STOP_KEYS, ids, strict=False):
        getattr(writer, add)(id_)
    writer.add_add_bos_token(False)
    config = folder / "tokenizer_config.json"
    declared = read_json_object(config) if config.exists() else {}
    for key, add_id in (("bos_token", writer.add_bos_token_id), ("pad_token", writer.add_pad_token_id)):
        token = declared.get(key)
        name = token.get("content") if isinstance(token, dict) else token
        special = tokenizer.token_id(name) if isinstance(name, str) else None
        if special is not None:
            add_id(special)


def _chat_template(folder: Path) -> str | None:
    """The checkpoint's own; the file of its own before tokenizer_config.json, as transformers reads it."""
    if (folder / "chat_template.jinja").exists():
        return read_regular_text(folder / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).exists():
            template = read_json_object(folder / name).get("chat_template")
            if isinstance(template, str):
                return template
    return None


def _check_pre_tokenizer(definition: Mapping[str, Any], folder: Path) -> None:
    steps = (definition.get("pre_tokenizer") or {}).get("pretokenizers") or []
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    if patterns != [QWEN2_PATTERN]:
        raise CheckpointError(
            "llama.cpp does not split text as this tokenizer does.",
            where=folder,
            expected="Qwen2's split pattern",
            found=shorten_value(patterns),
            fix="use the tokenizer files that were published with the checkpoint",
        )
