"""A tokenizer's words as they were read and checked, kept between processes on one machine.

To parse and to check the files of 151,643 words takes longer than to give the words to the library. What is left of
them then is kept in the user's cache folder, in a form that is parsed several times as fast. The name of an entry holds
a hash of what decides its content: the path, size, inode and time of change of each file that is read, and
`_CHECKED_AS`. So nothing stale is ever found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from r1v_export.files import read_regular_bytes
from r1v_export.processing.tokenizer_files import FILES, AddedToken, words_file
from r1v_export.processing.tokenizer_words import Words, read_words
from r1v_export.user_cache import Entry, cache_folder, digest, file_states, is_off

LEAST_WORDS = 1 << 14
"""Fewer are read in less than a tenth of a second."""
_CHECKED_AS = 1
"""Raised with every change of what is read from the files, of what is checked, and of how it is kept."""
_FILE = "words.json"


def kept_words(folder: Path) -> Words:
    """What `read_words` gives: from what an earlier process has kept, if there is any; else it is kept, if it is much.

    That nothing can be kept is no error.

    Raises:
        CheckpointError: as of `read_words`.
    """
    cache = None if is_off() else cache_folder("tokenizer")
    if cache is None:
        return read_words(folder)
    source = words_file(folder).resolve()
    try:
        states = file_states([path.resolve() for name in FILES if (path := folder / name).is_file()])
    except OSError:  # said where the file is read
        return read_words(folder)
    size_bytes = sum(size for _, size, _, _ in states)
    entry = Entry(cache, source, digest(str(source)), digest(json.dumps([_CHECKED_AS, states])), size_bytes)
    if entry.is_kept():
        try:
            return _words(json.loads(read_regular_bytes(entry.folder / _FILE)))
        except Exception as error:  # whatever it holds now
            entry.discard(error)
    words = read_words(folder)
    if len(words.ids) >= LEAST_WORDS:
        _keep(words, entry)
    return words


def _keep(words: Words, entry: Entry) -> None:
    with entry.scratch() as scratch:
        if scratch is not None:
            try:
                (scratch / _FILE).write_text(json.dumps(_content(words), ensure_ascii=False), encoding="utf-8")
                entry.keep(scratch)
            except (OSError, LookupError) as error:  # no room, or merges of what is no word
                entry.not_kept(error)


def _content(words: Words) -> dict[str, Any]:
    """What `_words` reads: merges as the places of their words, so that there is one text of each word."""
    place = {word: index for index, word in enumerate(words.ids)}
    return {
        "settings": words.settings,
        "words": [*words.ids],
        "ids": [*words.ids.values()],
        "merges": [[place[merge[part]] for merge in words.merges] for part in (0, 1)],
        "added": {name: [token.id, token.special] for name, token in words.added.items()},
    }


def _words(content: dict[str, Any]) -> Words:
    words = content["words"]
    first, second = (map(words.__getitem__, places) for places in content["merges"])
    return Words(
        content["settings"],
        dict(zip(words, content["ids"], strict=True)),
        list(zip(first, second, strict=True)),
        {name: AddedToken(id_, special) for name, (id_, special) in content["added"].items()},
    )
