"""Added tokens of a checkpoint's tokenizer, looked up in whichever files it was published with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r1v_export.checkpoint.config_section import read_json_object
from r1v_export.errors import CheckpointError

IMAGE_TOKEN = "<IMG_CONTEXT>"
"""Its positions are replaced by image embeddings."""


def added_tokens(folder: Path) -> dict[str, int]:
    """Token -> id, from tokenizer.json, tokenizer_config.json and added_tokens.json together.

    Raises:
        CheckpointError: one of the files is broken, or two of them give a token different ids.
    """
    tokens: dict[str, int] = {}
    for name, read in _READERS.items():
        path = folder / name
        if not path.exists():
            continue
        try:
            found = read(read_json_object(path))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The added tokens of {name} cannot be read.",
                where=path,
                expected="tokens with their ids",
                found=repr(error),
                fix="copy the tokenizer files again from where the checkpoint came from",
            ) from error
        for token, token_id in found.items():
            if tokens.setdefault(token, token_id) != token_id:
                raise CheckpointError(
                    f"The tokenizer files disagree about the id of {token}.",
                    where=path,
                    expected=tokens[token],
                    found=token_id,
                    fix="copy the tokenizer files again from where the checkpoint came from",
                )
    return tokens


def _from_tokenizer(content: dict[str, Any]) -> dict[str, int]:
    return {str(entry["content"]): int(entry["id"]) for entry in content.get("added_tokens") or []}


def _from_tokenizer_config(content: dict[str, Any]) -> dict[str, int]:
    decoder = content.get("added_tokens_decoder") or {}
    return {str(entry["content"]): int(token_id) for token_id, entry in decoder.items()}


def _from_added_tokens(content: dict[str, Any]) -> dict[str, int]:
    return {str(token): int(token_id) for token, token_id in content.items()}


_READERS = {
    "tokenizer.json": _from_tokenizer,
    "tokenizer_config.json": _from_tokenizer_config,
    "added_tokens.json": _from_added_tokens,
}
