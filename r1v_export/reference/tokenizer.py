"""The checkpoint's byte-level BPE: text to ids and back.

Text is tokenized with no added token recognized in it, special or not, so no text whatsoever becomes `<IMG_CONTEXT>`,
`<|im_end|>` or QwQ's `<think>`. Those are looked up by name and put between pieces of text by `reference.prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from r1v_export.errors import CheckpointError, InputError
from r1v_export.files import read_regular_text

# Qwen2's split pattern, for folders without a tokenizer.json. Source: transformers, tokenization_qwen2.py.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_VISIBLE_TOKENS = frozenset({"<think>", "</think>"})
"""Kept in decoded text even where a tokenizer declares them special: they separate the reasoning from the answer."""


def _byte_characters() -> Iterator[tuple[str, int]]:
    """The character that stands for each byte in a byte-level vocabulary, as GPT-2 numbered them: printable Latin-1
    stands for itself, the other bytes follow from U+0100 on."""
    others = 256
    for byte in range(256):
        if chr(byte).isprintable() and chr(byte) != " ":
            yield chr(byte), byte
        else:
            yield chr(others), byte
            others += 1


_BYTE_OF = dict(_byte_characters())


@dataclass(frozen=True)
class AddedToken:
    """A token beside the BPE's own, matched as a whole by its name."""

    id: int
    special: bool
    """Left out of decoded text."""


class Tokenizer:
    """Text to ids and ids to text. Immutable, and safe to share between threads."""

    def __init__(self, plain: tokenizers.Tokenizer, added_tokens: Mapping[str, AddedToken]) -> None:
        """
        Args:
            plain: the byte-level BPE without any added token.
            added_tokens: the added tokens by name.
        """
        self._plain = plain
        self.added_tokens = dict(added_tokens)
        self._text_of = {id_: token for token, id_ in plain.get_vocab().items()}
        self._text_of |= {token.id: name for name, token in added_tokens.items()}
        self._hidden = {t.id for name, t in added_tokens.items() if t.special and name not in _VISIBLE_TOKENS}

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the added tokens of every tokenizer file.

        Raises:
            CheckpointError: a file is missing, damaged, contradicts another, or is not a byte-level BPE.
        """
        folder = Path(folder)
        definition = _read_definition(folder)
        added = _read_added_tokens(folder, definition)
        return cls(_without_added_tokens(definition, added, folder), added)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a model's embedding may have further, unused rows."""
        return 1 + max(self._text_of)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; never the id of an added token.

        Raises:
            InputError: the text holds lone surrogates and so is no Unicode text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("The text is not valid Unicode.", where=f"character {error.start}", found=error) from error
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, without special tokens, with `<think>` and `</think>`; ids without a token give nothing.

        Bytes that are not UTF-8, such as the first half of a character, become U+FFFD.
        """
        tokens = [self._text_of[id_] for id_ in ids if id_ in self._text_of and id_ not in self._hidden]
        return self._plain.decoder.decode(tokens)

    def token_bytes(self, id_: int) -> bytes:
        """What a token adds to decoded text: `decode` is these bytes of all ids, joined and read as UTF-8."""
        if id_ not in self._text_of or id_ in self._hidden:
            return b""
        token = self._text_of[id_]
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # An added token may hold characters that stand for no byte.
            return token.encode()

    def token_id(self, token: str) -> int | None:
        """Id of an added token, None if this tokenizer has none of that name."""
        added = self.added_tokens.get(token)
        return None if added is None else added.id

    def special_id(self, token: str) -> int:
        """Id of an added token that the model cannot do without.

        Raises:
            CheckpointError: this tokenizer has no such token.
        """
        id_ = self.token_id(token)
        if id_ is None:
            raise CheckpointError(
                f"The tokenizer has no token {token}.",
                expected=f"{token} among the added tokens",
                found=" ".join(self.added_tokens) or "no added tokens",
                fix="use the tokenizer files that belong to this checkpoint and its prompt template",
            )
        return id_


def _read_definition(folder: Path) -> dict[str, Any]:
    """The content of `tokenizer.json`, or the same made from the older pair of files."""
    file = folder / "tokenizer.json"
    if file.exists():
        return _read_json(file)
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
    vocab, merges = _read_json(vocab_file), _read_merges(merges_file)
    try:
        qwen2 = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # The tokenizers library raises bare Exceptions and TypeErrors.
        raise _corrupt(vocab_file, error) from error
    qwen2.normalizer = normalizers.NFC()
    qwen2.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    qwen2.decoder = decoders.ByteLevel()
    return json.loads(qwen2.to_str())


def _read_merges(file: Path) -> list[tuple[str, str]]:
    try:
        lines = read_regular_text(file).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _corrupt(file, error) from error
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
                found=repr(line),
            )
        merges.append((parts[0], parts[1]))
    return merges


def _read_added_tokens(folder: Path, definition: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Added tokens of all tokenizer files; what two files both tell must agree."""
    config = _read_optional_json(folder / "tokenizer_config.json")
    special_names = _special_names(config) | _special_names(_read_optional_json(folder / "special_tokens_map.json"))
    try:
        declared = list(_declared_tokens(folder, definition, config))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _corrupt(folder, f"no name or no id for an added token ({error!r})") from error
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
    """(file, name, id, special) of every added token; a file that tells nothing of specialness says False."""
    for token in definition.get("added_tokens", []):
        yield "tokenizer.json", token["content"], int(token["id"]), token["special"]
    for id_, token in config.get("added_tokens_decoder", {}).items():
        yield "tokenizer_config.json", token["content"], int(id_), token.get("special", False)
    for name, id_ in _read_optional_json(folder / "added_tokens.json").items():
        yield "added_tokens.json", name, int(id_), False


def _special_names(config: Mapping[str, Any]) -> set[str]:
    """Tokens that a tokenizer_config.json or special_tokens_map.json names as special."""
    extra = config.get("additional_special_tokens") or []
    entries = [value for key, value in config.items() if key.endswith("_token")]
    entries += extra if isinstance(extra, list) else []
    names = (entry.get("content") if isinstance(entry, dict) else entry for entry in entries)
    return {name for name in names if isinstance(name, str)}


def _without_added_tokens(
    definition: Mapping[str, Any], added: Mapping[str, AddedToken], folder: Path
) -> tokenizers.Tokenizer:
    """The bare BPE. Added tokens leave the vocabulary too, so that no merge can ever make one."""
    file = folder / "tokenizer.json"
    model = definition.get("model")
    model = model if isinstance(model, dict) else {}
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        raise CheckpointError(
            "The tokenizer is not a byte-level BPE.",
            where=file,
            expected="a BPE vocabulary with one token for each of the 256 bytes",
            found=f"model type {model.get('type')}",
        )
    vocab = {token: id_ for token, id_ in vocab.items() if token not in added}
    _check_ids_are_distinct(vocab, added, file)
    # No truncation, padding or post-processor: they would change text behind the caller's back.
    off: dict[str, Any] = {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    plain = {**definition, **off, "model": {**model, "vocab": vocab}}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # The tokenizers library raises bare Exceptions.
        raise _corrupt(file, error) from error


def _check_ids_are_distinct(vocab: Mapping[str, int], added: Mapping[str, AddedToken], file: Path) -> None:
    """Were an added token's id also a word's, ordinary text could make a special token after all."""
    owner = {id_: token for token, id_ in vocab.items()}
    for name, token in added.items():
        if owner.setdefault(token.id, name) != name:
            raise CheckpointError(
                "Two tokens share one id.",
                where=file,
                expected=f"id {token.id} for {name} alone",
                found=owner[token.id],
            )


def _read_optional_json(file: Path) -> dict[str, Any]:
    return _read_json(file) if file.exists() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_regular_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise _corrupt(file, error) from error
    if not isinstance(content, dict):
        raise _corrupt(file, f"a JSON {type(content).__name__} instead of an object")
    return content


def _corrupt(file: Path, found: object) -> CheckpointError:
    fix = "download the file again"
    return CheckpointError("A tokenizer file is damaged.", where=file, found=found, fix=fix)
