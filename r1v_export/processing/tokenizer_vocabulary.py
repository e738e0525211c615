"""Vocabulary and merges of a checkpoint's byte-level BPE, checked, apart from its added tokens."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
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
    vocabulary_file,
)
from r1v_export.quoting import shorten_text, shorten_value

VERSION_LINE = "#version"
"""What begins a line of merges that the library passes over, wherever it is."""
_BPE_SETTINGS = ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
_PROBE = unicodedata.normalize("NFC", f"  {''.join(map(chr, range(1, 1024)))}\u4e2d\uff5c\U0001f642 a  b\r\n\n c \n")
"""Text that comes back unchanged from a tokenizer that can be used: 1, 2, 3 and 4 bytes a character."""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE, and the tokens that were added to it."""

    settings: Mapping[str, Any]
    """Content of a tokenizer.json without vocabulary, merges and added tokens."""
    ids: dict[str, int]
    """Id of each token; no added token is one, so that no merge can ever make one."""
    merges: Sequence[tuple[str, str]]
    """Pairs of tokens that are merged, the first ones first."""
    added: Mapping[str, AddedToken]

    def open(self, file: Path) -> tokenizers.Tokenizer:
        """The library's tokenizer of the vocabulary alone.

        Vocabulary and merges are given to it as they are: to write 151,643 tokens as JSON, for the library to read it,
        takes longer than all else of opening a tokenizer.

        Args:
            file: where they are from, for the error.

        Raises:
            CheckpointError: the library does not take the settings or the merges, or the tokenizer does not give text
                back unchanged.
        """
        with library_errors(file):
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(self.settings))
            found = {name: getattr(tokenizer.model, name) for name in _BPE_SETTINGS}
            given: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
            tokenizer.model = models.BPE(vocab=self.ids, merges=self.merges, **given)
            check_gives_text_back(tokenizer, file)
        return tokenizer


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the tokenizer files of a checkpoint.

    Raises:
        CheckpointError: a file is missing, damaged, contradicts another, or is not of a byte-level BPE.
    """
    definition = read_definition(folder)
    added, file = read_added_tokens(folder, definition), vocabulary_file(folder)
    model = definition.get("model")
    model = model if isinstance(model, dict) else {}
    ids = model.get("vocab") if model.get("type") in ("BPE", None) else None
    if not isinstance(ids, dict) or not ids.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        raise CheckpointError(
            "The tokenizer is not a byte-level BPE.",
            where=file,
            expected="a BPE vocabulary with one token for each of the 256 bytes",
            found=f"model type {shorten_value(model.get('type'))}",
            fix="use the tokenizer files that were published with the checkpoint",
        )
    # The library panics on some prefixes, and no byte-level BPE has either.
    if affixes := {key: model[key] for key in _AFFIXES if model.get(key)}:
        raise corrupt_file(file, f"model: {shorten_value(affixes)}")
    check_ids(ids, file)
    if not ids.keys().isdisjoint(added):
        ids = {token: id_ for token, id_ in ids.items() if token not in added}
    _check_ids_are_distinct(ids, added, file)
    try:
        merges = _pairs(model["merges"])
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt_file(file, f"model: no merges of two tokens each ({type(error).__name__})") from error
    # No truncation, padding or post-processor: they would change text behind the caller's back.
    off: dict[str, Any] = {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    empty = {**model, **dict.fromkeys(_AFFIXES), "vocab": {}, "merges": []}
    return Vocabulary({**definition, **off, "model": empty}, ids, merges, added)


def check_gives_text_back(tokenizer: tokenizers.Tokenizer, file: Path) -> None:
    """Check that text which is encoded and decoded is the same text.

    Raises:
        CheckpointError: it is not.
    """
    ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    found: str = tokenizer.decode(ids, skip_special_tokens=False)
    if found != _PROBE:
        at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, _PROBE, strict=False)))
        raise CheckpointError(
            "The tokenizer does not give text back as it was.",
            where=file,
            expected=repr(_PROBE[at : at + 10]),
            found=repr(found[at : at + 10]),
            fix="use the tokenizer files that were published with the checkpoint",
        )


def _pairs(merges: Any) -> list[tuple[str, str]]:
    """
    Raises:
        TypeError, ValueError: some are no pair.
    """
    if not isinstance(merges, list):
        raise TypeError("no list")
    if all(isinstance(merge, str) for merge in merges):  # as transformers wrote them before 2024
        merges = [merge.split(" ") for merge in merges if not merge.startswith(VERSION_LINE)]
    elif not all(isinstance(merge, list) for merge in merges):
        raise TypeError("merges are texts or lists")
    return [(first, second) for first, second in merges]


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
