"""The words of a checkpoint's byte-level BPE, checked, apart from its added tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from r1v_export.errors import CheckpointError
from r1v_export.processing.tokenizer_files import (
    AddedToken,
    check_ids,
    corrupt_file,
    library_errors,
    read_added_tokens,
    read_definition,
    words_file,
)
from r1v_export.quoting import shorten_text, shorten_value

_BPE_SETTINGS = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")


@dataclass(frozen=True)
class Words:
    """A byte-level BPE, and the tokens that were added to it."""

    settings: Mapping[str, Any]
    """Content of a tokenizer.json without words and without added tokens."""
    ids: dict[str, int]
    """Id of each word; no added token is one, so that no merge can ever make one."""
    merges: Sequence[tuple[str, str]]
    """Words that are merged, the first ones first."""
    added: Mapping[str, AddedToken]

    def bpe(self) -> tuple[tokenizers.Tokenizer, Mapping[str, AddedToken]]:
        """The library's tokenizer of the words alone, and the added tokens.

        The words are given to it as they are: to write 151,643 of them as JSON, for the library to read it, takes
        longer than all else of opening a tokenizer.

        Raises:
            BaseException: of any class of the library's, for settings or merges that it does not take.
        """
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self.settings))
        found = {name: getattr(tokenizer.model, name) for name in _BPE_SETTINGS}
        given: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
        tokenizer.model = models.BPE(vocab=self.ids, merges=self.merges, **given)
        return tokenizer, self.added


def read_words(folder: Path) -> Words:
    """Read the tokenizer files of a checkpoint.

    Raises:
        CheckpointError: a file is missing, damaged, contradicts another, or is not a byte-level BPE.
    """
    definition = read_definition(folder)
    added, file = read_added_tokens(folder, definition), words_file(folder)
    model = definition.get("model")
    model = model if isinstance(model, dict) else {}
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not ids.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        raise CheckpointError(
            "The tokenizer is not a byte-level BPE.",
            where=file,
            expected="a BPE vocabulary with one token for each of the 256 bytes",
            found=f"model type {shorten_value(model.get('type'))}",
            fix="use the tokenizer files that were published with the checkpoint",
        )
    # The library panics on some prefixes, and no byte-level BPE has either.
    affixes = {key: model[key] for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)}
    if affixes:
        raise corrupt_file(file, f"model: {shorten_value(affixes)}")
    check_ids(ids, file)
    if not ids.keys().isdisjoint(added):
        ids = {token: id_ for token, id_ in ids.items() if token not in added}
    _check_ids_are_distinct(ids, added, file)
    with library_errors(file):
        merges = _pairs(model["merges"])
    # No truncation, padding or post-processor: they would change text behind the caller's back.
    off: dict[str, Any] = {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    return Words({**definition, **off, "model": {**model, "vocab": {}, "merges": []}}, ids, merges, added)


def _pairs(merges: Iterable[str | Sequence[str]]) -> list[tuple[str, str]]:
    split = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(first, second) for first, second in split]


def _check_ids_are_distinct(ids: Mapping[str, int], added: Mapping[str, AddedToken], file: Path) -> None:
    """Were an added token's id also a word's, ordinary text could make a special token after all."""
    owner = {id_: token for token, id_ in ids.items()}
    if len(owner) < len(ids):
        twice = next(token for token, id_ in ids.items() if owner[id_] != token)
        raise CheckpointError(
            "Two tokens share one id.",
            where=file,
            expected=f"id {ids[twice]} for one token",
            found=f"{shorten_text(twice)} and {shorten_text(owner[ids[twice]])}",
            fix="download the file again",
        )
    for name, token in added.items():
        if owner.setdefault(token.id, name) != name:
            raise CheckpointError(
                "Two tokens share one id.",
                where=file,
                expected=f"id {token.id} for {name} alone",
                found=shorten_text(owner[token.id]),
                fix="use the tokenizer files of one checkpoint",
            )
