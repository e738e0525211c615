"""A tokenizer's words, read and checked, kept between processes on one machine.

To parse and to check the files of 151,643 words takes as long as the library needs for them. They are kept in the
user's cache folder in the form that the library reads fastest: a tokenizer.json without added tokens and with merges
as texts, as transformers wrote them before 2024. The name of an entry holds a hash of what decides its content: the
path, size, inode and time of change of each file that is read, and `_CHECKED_AS`. So nothing stale is ever found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers

from r1v_export.files import read_regular_bytes
from r1v_export.processing.tokenizer_files import FILES, AddedToken, library_errors, words_file
from r1v_export.processing.tokenizer_words import Words, read_words
from r1v_export.user_cache import Entry, cache_folder, digest, file_states, is_off

LEAST_WORDS = 1 << 14
"""Fewer are read in less than a tenth of a second."""
_CHECKED_AS = 1
"""Raised with every change of what is read from the files, of what is checked, and of how it is kept."""
_WORDS, _ADDED = "words.json", "added.json"


def kept_bpe(folder: Path) -> tuple[tokenizers.Tokenizer, Mapping[str, AddedToken]]:
    """What `read_words(folder).bpe()` gives, from what an earlier process has kept; if nothing is, many words are.

    That nothing can be kept is no error.

    Raises:
        CheckpointError, BaseException: as of `read_words` and `Words.bpe`.
    """
    if (entry := _entry(folder)) is None:
        return read_words(folder).bpe()
    if entry.is_kept():
        try:
            return _read(entry.folder)
        except Exception as error:  # whatever it holds now
            entry.discard(error)
    words = read_words(folder)
    opened = words.bpe()
    if len(words.ids) >= LEAST_WORDS:
        _keep(words, entry)
    return opened


def _entry(folder: Path) -> Entry | None:
    """Where a tokenizer is kept; None where nothing is to be kept."""
    cache, source = cache_folder("tokenizer"), words_file(folder).resolve()
    if cache is None or is_off():
        return None
    try:
        states = file_states([path.resolve() for name in FILES if (path := folder / name).is_file()])
    except OSError:  # said where the file is read
        return None
    size_bytes = sum(size for _, size, _, _ in states)
    return Entry(cache, source, digest(str(source)), digest(json.dumps([_CHECKED_AS, states])), size_bytes)


def _read(kept: Path) -> tuple[tokenizers.Tokenizer, dict[str, AddedToken]]:
    added = json.loads(read_regular_bytes(kept / _ADDED))
    with library_errors(kept / _WORDS):
        words = tokenizers.Tokenizer.from_buffer(read_regular_bytes(kept / _WORDS))
    return words, {name: AddedToken(id_, special) for name, (id_, special) in added.items()}


def _keep(words: Words, entry: Entry) -> None:
    with entry.scratch() as scratch:
        if scratch is None:
            return
        try:
            added = {name: [token.id, token.special] for name, token in words.added.items()}
            for name, content in ((_WORDS, _definition(words)), (_ADDED, added)):
                (scratch / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            entry.keep(scratch)
        except (OSError, ValueError) as error:  # a disk that is full, for example
            entry.not_kept(error)


def _definition(words: Words) -> dict[str, object]:
    merges = [" ".join(pair) for pair in words.merges]
    if any(text.count(" ") != 1 for text in merges):
        raise ValueError("a word has a space, which separates words in merges that are texts")
    return {**words.settings, "model": {**words.settings["model"], "vocab": words.ids, "merges": merges}}
