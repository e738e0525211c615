"""A tokenizer's vocabulary and merges, read and checked, kept between processes on one machine.

To parse and to check the files of 151,643 tokens takes as long as the library needs for them. They are kept in the
user's cache folder in the form that the library reads fastest: a tokenizer.json without added tokens and with merges
as texts, as transformers wrote them before 2024. The name of an entry holds a hash of what decides its content: the
versions of the library and of this package, `_CHECKED_AS`, and the path, size, inode and time of change of each file
that is read. So nothing stale is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers

from r1v_export.errors import CheckpointError
from r1v_export.processing.tokenizer_files import FILES, AddedToken, library_errors, vocabulary_file
from r1v_export.processing.tokenizer_vocabulary import VERSION_LINE, Vocabulary, check_gives_text_back, read_vocabulary
from r1v_export.strict import load_json
from r1v_export.user_cache import Entry, cache_folder, digest, file_states, is_off, open_own
from r1v_export.version import VERSION

LEAST_TOKENS = 1 << 14
"""Fewer are read in less than a tenth of a second."""
_CHECKED_AS = 1
"""Raised with every change of what is read from the files, of what is checked, and of how it is kept."""
_VOCABULARY, _REST = "vocabulary.json", "rest.json"


def kept_bpe(folder: Path) -> tuple[tokenizers.Tokenizer, Mapping[str, AddedToken]]:
    """A folder's vocabulary, opened, and its added tokens: from what an earlier process has kept; if it has nothing, a
    large vocabulary is kept now.

    That nothing can be kept is no error.

    Raises:
        CheckpointError: as of `read_vocabulary` and `Vocabulary.open`.
    """
    entry = _entry(folder)
    if entry is not None and (kept := _read(entry)) is not None:
        return kept
    vocabulary = read_vocabulary(folder)
    opened = vocabulary.open(vocabulary_file(folder))
    if entry is not None and len(vocabulary.ids) >= LEAST_TOKENS and entry.is_own():
        _keep(vocabulary, entry)
    return opened, vocabulary.added


def _entry(folder: Path) -> Entry | None:
    """Where a tokenizer is kept; None where nothing is to be kept."""
    cache = cache_folder("tokenizer")
    if cache is None or is_off():
        return None
    try:
        group, source = digest(str(folder.resolve())), vocabulary_file(folder).resolve()
        states = file_states([path.resolve() for name in FILES if (path := folder / name).exists()])
    except (OSError, RuntimeError):  # links in a circle, for example; said where the file is read
        return None
    size_bytes = sum(state[1] for state in states)
    key = digest(json.dumps([tokenizers.__version__, VERSION, _CHECKED_AS, states]))
    return Entry(cache, source, group, key, size_bytes)


def _read(entry: Entry) -> tuple[tokenizers.Tokenizer, dict[str, AddedToken]] | None:
    """What is kept; None if it is not there, damaged, or may be another user's."""
    if not entry.is_kept() or not entry.is_own():
        return None
    try:
        where = entry.folder / _VOCABULARY
        with open_own(where) as kept, open_own(entry.folder / _REST) as file:
            content = kept.read()
            rest = load_json(file.read(), CheckpointError, "What was kept is damaged")
        if hashlib.sha256(content).hexdigest() != rest["sha256"]:
            raise ValueError(f"{_VOCABULARY} is damaged")
        with library_errors(where):
            opened = tokenizers.Tokenizer.from_buffer(content)
            check_gives_text_back(opened, where)
        return opened, {name: AddedToken(id_, special) for name, (id_, special) in rest["added"].items()}
    except Exception as error:  # whatever it holds now
        entry.discard(error)
        return None


def _keep(vocabulary: Vocabulary, entry: Entry) -> None:
    with entry.scratch() as scratch:
        if scratch is None:
            return
        try:
            content = json.dumps(_definition(vocabulary), ensure_ascii=False, separators=(",", ":")).encode()
            added = {name: [token.id, token.special] for name, token in vocabulary.added.items()}
            rest = {"added": added, "sha256": hashlib.sha256(content).hexdigest()}
            for name, written in ((_VOCABULARY, content), (_REST, json.dumps(rest).encode())):
                (scratch / name).touch(mode=0o600)  # whatever the umask lets others do
                (scratch / name).write_bytes(written)
            entry.keep(scratch)
        except (OSError, ValueError) as error:  # a disk that is full, for example
            entry.not_kept(error)


def _definition(vocabulary: Vocabulary) -> dict[str, object]:
    """
    Raises:
        ValueError: merges that cannot be texts.
    """
    merges = [" ".join(pair) for pair in vocabulary.merges]
    if any(text.count(" ") != 1 or text.startswith(VERSION_LINE) for text in merges):
        raise ValueError("merges as texts would be read as other merges")
    return {**vocabulary.settings, "model": {**vocabulary.settings["model"], "vocab": vocabulary.ids, "merges": merges}}
