"""The checkpoint's byte-level BPE: text to ids and back.

Text is tokenized with no added token recognized in it, special or not, so no text whatsoever becomes `<IMG_CONTEXT>`,
`<|im_end|>` or QwQ's `<think>`. Those are looked up by name and put between pieces of text by `reference.prompt`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from r1v_export.checkpoint.byte_level import BYTE_OF
from r1v_export.checkpoint.config_section import read_json_object
from r1v_export.errors import CheckpointError, InputError
from r1v_export.files import read_regular_text
from r1v_export.quoting import shorten_text, shorten_value

# Qwen2's split pattern, for folders without a tokenizer.json. Source: transformers, tokenization_qwen2.py.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

IMAGE_TOKEN = "<IMG_CONTEXT>"
"""Its positions are replaced by image embeddings."""

_MAX_ID = 2**24
"""Bound of token ids; the library allocates memory for all ids up to the largest."""

_PROBE = unicodedata.normalize("NFC", f"  {''.join(map(chr, range(1, 1024)))}\u4e2d\uff5c\U0001f642 a  b\r\n\n c \n")
"""Text that comes back unchanged from a tokenizer that can be used: 1, 2, 3 and 4 bytes a character."""

_VISIBLE_TOKENS = frozenset({"<think>", "</think>"})
"""Kept in decoded text even where a tokenizer declares them special: they separate the reasoning from the answer."""

_GROUNDING_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
"""InternVL's marks around what is named and where it is."""


@dataclass(frozen=True)
class AddedToken:
    """A token beside the BPE's own, matched as a whole by its name."""

    id: int
    special: bool
    """Left out of decoded text."""


class Tokenizer:
    """Text to ids and ids to text. Immutable, and safe to share between threads."""

    def __init__(
        self, plain: tokenizers.Tokenizer, added_tokens: Mapping[str, AddedToken], grounding: bool = False
    ) -> None:
        """
        Args:
            plain: the byte-level BPE without any added token.
            added_tokens: the added tokens by name.
            grounding: let the tokens of grounding through, see `with_grounding`.
        """
        self._plain = plain
        self.added_tokens = dict(added_tokens)
        self.grounding_tokens = tuple(name for name in _GROUNDING_TOKENS if grounding and name in added_tokens)
        self._text_of = {id_: token for token, id_ in plain.get_vocab().items()}
        self._text_of |= {token.id: name for name, token in added_tokens.items()}
        self._hidden = {token.id for name, token in added_tokens.items() if self.hides(name)}

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the added tokens of every tokenizer file.

        Raises:
            CheckpointError: a file is missing, damaged, contradicts another, is not a byte-level BPE, or does not give
                text back unchanged.
        """
        folder = Path(folder)
        definition = _read_definition(folder)
        added = _read_added_tokens(folder, definition)
        file = folder / ("tokenizer.json" if (folder / "tokenizer.json").exists() else "vocab.json")
        tokenizer = cls(_without_added_tokens(definition, added, file), added)
        with _library_errors(file):
            _check_round_trip(tokenizer, file)
        return tokenizer

    def with_grounding(self) -> Tokenizer:
        """The same tokenizer, with `<ref>`, `<box>` and `<quad>` shown in decoded text, and special in prompts, where
        anyone can then write them."""
        return Tokenizer(self._plain, self.added_tokens, grounding=True)

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
            return bytes(BYTE_OF[character] for character in token)
        except KeyError:  # An added token may hold characters that stand for no byte.
            return token.encode()

    def hides(self, token: str) -> bool:
        """Whether an added token is left out of decoded text."""
        return self.added_tokens[token].special and token not in (*_VISIBLE_TOKENS, *self.grounding_tokens)

    def definition(self) -> dict[str, Any]:
        """Content of a tokenizer.json, which `from_folder` reads as this tokenizer."""
        content: dict[str, Any] = json.loads(self._plain.to_str())
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        content["added_tokens"] = [
            {"id": token.id, "content": name, **flags, "special": token.special}
            for name, token in sorted(self.added_tokens.items(), key=lambda item: item[1].id)
        ]
        # In the vocabulary too: other readers of such files would give the added tokens ids of their own.
        content["model"]["vocab"] |= {name: token.id for name, token in self.added_tokens.items()}
        return content

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


def eos_token_ids(generation_config: Mapping[str, Any], vocab_size: int = _MAX_ID) -> tuple[int, ...]:
    """`eos_token_id` of a generation_config.json: none, one or several.

    Args:
        vocab_size: ids lie below it.

    Raises:
        CheckpointError: it is neither an id nor a list of ids.
    """
    declared = generation_config.get("eos_token_id")
    ids = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(type(id_) is int and 0 <= id_ < vocab_size for id_ in ids):
        raise CheckpointError(
            "The eos_token_id cannot be used.",
            where="generation_config.json: eos_token_id",
            expected=f"an id from 0 to {vocab_size - 1}, or a list of ids",
            found=shorten_value(declared),
            fix="copy generation_config.json from where the checkpoint came from",
        )
    return tuple(ids)


def _read_definition(folder: Path) -> dict[str, Any]:
    """The content of `tokenizer.json`, or the same made from the older pair of files."""
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
    _check_ids(vocab, vocab_file)
    with _library_errors(vocab_file):
        qwen2 = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
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
                found=shorten_value(line),
                fix="download the file again",
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
        raise _corrupt(folder, f"no name or no id for an added token ({shorten_text(repr(error))})") from error
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
    if type(value) is not int or not 0 <= value < _MAX_ID:
        raise ValueError(f"{shorten_value(value)} is no id from 0 to {_MAX_ID - 1}")
    return value


def _special_names(config: Mapping[str, Any]) -> set[str]:
    """Tokens that a tokenizer_config.json or special_tokens_map.json names as special."""
    extra = config.get("additional_special_tokens") or []
    entries = [value for key, value in config.items() if key.endswith("_token")]
    entries += extra if isinstance(extra, list) else []
    names = (entry.get("content") if isinstance(entry, dict) else entry for entry in entries)
    return {name for name in names if isinstance(name, str)}


def _without_added_tokens(
    definition: Mapping[str, Any], added: Mapping[str, AddedToken], file: Path
) -> tokenizers.Tokenizer:
    """The bare BPE. Added tokens leave the vocabulary too, so that no merge can ever make one."""
    model = definition.get("model")
    model = model if isinstance(model, dict) else {}
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
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
        raise _corrupt(file, f"model: {shorten_value(affixes)}")
    _check_ids(vocab, file)
    vocab = {token: id_ for token, id_ in vocab.items() if token not in added}
    _check_ids_are_distinct(vocab, added, file)
    # No truncation, padding or post-processor: they would change text behind the caller's back.
    off: dict[str, Any] = {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    plain = {**definition, **off, "model": {**model, "vocab": vocab}}
    with _library_errors(file):
        return tokenizers.Tokenizer.from_str(json.dumps(plain))


@contextmanager
def _library_errors(file: Path) -> Iterator[None]:
    """Errors of the tokenizers library, bare Exceptions and panics (no Exceptions at all), as errors of ours."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise _corrupt(file, shorten_text(f"{type(error).__name__}: {error}")) from error


def _check_ids(vocab: Mapping[str, object], file: Path) -> None:
    """Ids are bounded before the library sees them: it allocates memory for all up to the largest."""
    for token, id_ in vocab.items():
        if type(id_) is not int or not 0 <= id_ < _MAX_ID:
            raise CheckpointError(
                "A token's id cannot be used.",
                where=f"{file}: {shorten_value(token)}",
                expected=f"an integer from 0 to {_MAX_ID - 1}",
                found=shorten_value(id_),
                fix="download the file again",
            )


def _check_round_trip(tokenizer: Tokenizer, file: Path) -> None:
    found = tokenizer.decode(tokenizer.encode_text(_PROBE))
    if found != _PROBE:
        at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(found, _PROBE, strict=False)))
        raise CheckpointError(
            "The tokenizer does not give text back as it was.",
            where=file,
            expected=repr(_PROBE[at : at + 10]),
            found=repr(found[at : at + 10]),
            fix="use the tokenizer files that were published with the checkpoint",
        )


def _check_ids_are_distinct(vocab: Mapping[str, int], added: Mapping[str, AddedToken], file: Path) -> None:
    """Were an added token's id also a word's, ordinary text could make a special token after all."""
    owner = {id_: token for token, id_ in vocab.items()}
    if len(owner) < len(vocab):
        twice = next(token for token, id_ in vocab.items() if owner[id_] != token)
        raise CheckpointError(
            "Two tokens share one id.",
            where=file,
            expected=f"id {vocab[twice]} for one token",
            found=f"{shorten_text(twice)} and {shorten_text(owner[vocab[twice]])}",
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


def _read_optional_json(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.exists() else {}


def _corrupt(file: Path, found: object) -> CheckpointError:
    fix = "download the file again"
    return CheckpointError("A tokenizer file is damaged.", where=file, found=found, fix=fix)
