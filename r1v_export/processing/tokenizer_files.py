"""What the tokenizer files of a checkpoint say: a definition for the library, and the added tokens by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from r1v_export.checkpoint_json import read_json_object
from r1v_export.errors import CheckpointError
from r1v_export.files import read_regular_text
from r1v_export.quoting import shorten_text, shorten_value

# Qwen2's split pattern, for folders without a tokenizer.json. Source: transformers, tokenization_qwen2.py.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MAX_ID = 2**24
"""Bound of token ids; the library allocates memory for all ids up to the largest."""


@dataclass(frozen=True)
class AddedToken:
    """A token added to the BPE's own, matched as a whole by its name."""

    id: int
    special: bool
    """Omitted from decoded text."""


FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"),
)
"""All that are read here."""


def vocabulary_file(folder: Path) -> Path:
    """The file that has the vocabulary."""
    return folder / ("tokenizer.json" if (folder / "tokenizer.json").exists() else "vocab.json")


def read_definition(folder: Path) -> dict[str, Any]:
    """Read `tokenizer.json`, or make the same definition from `vocab.json` and `merges.txt`.

    Raises:
        CheckpointError: the files are missing, damaged, or of another tokenizer class.
    """
    file = folder / "tokenizer.json"
    if file.exists():
        return read_json_object(file)
    vocab_file, merges_file = folder / "vocab.json", folder / "merges.txt"
    if missing := [f.name for f in (vocab_file, merges_file) if not f.exists()]:
        raise CheckpointError(
            "The checkpoint has no tokenizer.",
            where=folder,
            expected="tokenizer.json, or vocab.json and merges.txt",
            found=f"no tokenizer.json, no {', no '.join(missing)}",
            fix="copy the tokenizer files of the original checkpoint into the folder",
        )
    tokenizer_class = _read_optional_json(folder / "tokenizer_config.json").get("tokenizer_class", "Qwen2Tokenizer")
    if tokenizer_class not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise CheckpointError(
            "Only a Qwen2 tokenizer can be read from vocab.json and merges.txt.",
            where=folder / "tokenizer_config.json",
            expected="tokenizer_class Qwen2Tokenizer",
            found=tokenizer_class,
            fix="add the checkpoint's tokenizer.json",
        )
    vocab, merges = read_json_object(vocab_file), _read_merges(merges_file)
    check_ids(vocab, vocab_file)
    with library_errors(vocab_file):
        return qwen2_definition(vocab, merges)


def qwen2_definition(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], added_tokens: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Content of a tokenizer.json of Qwen2's kind.

    Args:
        vocab: text -> id.
        added_tokens: `id`, `content` and `special` of each.
    """
    qwen2 = tokenizers.Tokenizer(models.BPE(vocab=dict(vocab), merges=list(merges)))
    qwen2.normalizer = normalizers.NFC()
    qwen2.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    qwen2.decoder = decoders.ByteLevel()
    document: dict[str, Any] = json.loads(qwen2.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document["added_tokens"] = [{**flags, **token} for token in added_tokens]
    return document


def _read_merges(file: Path) -> list[tuple[str, str]]:
    try:
        lines = read_regular_text(file).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise corrupt_file(file, error) from error
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise CheckpointError(
                "A merge is not a pair of tokens.",
                where=f"{file}, line {number}",
                expected="two tokens",
                found=shorten_value(line),
                fix="download the file again",
            )
        merges.append((parts[0], parts[1]))
    return merges


def read_added_tokens(folder: Path, definition: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Read the added tokens of all tokenizer files.

    Raises:
        CheckpointError: a file is damaged, or two files disagree about a token.
    """
    config = _read_optional_json(folder / "tokenizer_config.json")
    special_names = _special_names(config) | _special_names(_read_optional_json(folder / "special_tokens_map.json"))
    try:
        declared = list(_declared_tokens(folder, definition, config))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise corrupt_file(folder, f"no name or no id for an added token ({shorten_text(repr(error))})") from error
    added: dict[str, AddedToken] = {}
    for file, name, id_, special in declared:
        known = added.get(name, AddedToken(id_, name in special_names))
        if known.id != id_:
            raise CheckpointError(
                f"Two tokenizer files disagree about the token {name}.",
                where=folder / file,
                expected=f"id {known.id}",
                found=f"id {id_}",
                fix="use the tokenizer files of one checkpoint",
            )
        added[name] = AddedToken(id_, known.special or special)
    return added


def _declared_tokens(
    folder: Path, definition: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[tuple[str, str, int, bool]]:
    """(file, name, id, special) of every added token; a file that does not say whether it is special gives False."""
    for token in definition.get("added_tokens") or []:
        yield "tokenizer.json", _name(token["content"]), _id(token["id"]), bool(token.get("special", False))
    for id_, token in (config.get("added_tokens_decoder") or {}).items():
        yield "tokenizer_config.json", _name(token["content"]), _id(int(id_)), bool(token.get("special", False))
    for name, id_ in _read_optional_json(folder / "added_tokens.json").items():
        yield "added_tokens.json", name, _id(id_), False


def _name(content: object) -> str:
    if not isinstance(content, str) or not content:
        raise ValueError(f"{shorten_value(content)} is no name")
    return content


def _id(value: object) -> int:
    if type(value) is not int or not 0 <= value < MAX_ID:
        raise ValueError(f"{shorten_value(value)} is no id from 0 to {MAX_ID - 1}")
    return value


def _special_names(config: Mapping[str, Any]) -> set[str]:
    """Tokens that a tokenizer_config.json or special_tokens_map.json names as special."""
    extra = config.get("additional_special_tokens") or []
    entries = [value for key, value in config.items() if key.endswith("_token")]
    entries += extra if isinstance(extra, list) else []
    names = (entry.get("content") if isinstance(entry, dict) else entry for entry in entries)
    return {name for name in names if isinstance(name, str)}


@contextmanager
def library_errors(file: Path) -> Iterator[None]:
    """Errors of the tokenizers library, bare Exceptions and panics (no Exceptions at all), as errors of ours."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise corrupt_file(file, shorten_text(f"{type(error).__name__}: {error}")) from error


def check_ids(vocab: Mapping[str, object], file: Path) -> None:
    """Check the ids before the library sees them: it allocates memory for all up to the largest.

    Raises:
        CheckpointError: an id is not an integer from 0 to `MAX_ID` - 1.
    """
    for token, id_ in vocab.items():
        if type(id_) is not int or not 0 <= id_ < MAX_ID:
            raise CheckpointError(
                "A token's id cannot be used.",
                where=f"{file}: {shorten_value(token)}",
                expected=f"an integer from 0 to {MAX_ID - 1}",
                found=shorten_value(id_),
                fix="download the file again",
            )


def _read_optional_json(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.exists() else {}


def corrupt_file(file: Path, found: object) -> CheckpointError:
    """Return the error for a damaged tokenizer file."""
    fix = "download the file again"
    return CheckpointError("A tokenizer file is damaged.", where=file, found=found, fix=fix)
