"""The checkpoint's byte-level BPE: text to ids and back.

Text is tokenized with no added token recognized in it, special or not, so no text whatsoever becomes `<IMG_CONTEXT>`,
`<|im_end|>` or QwQ's `<think>`. Those are looked up by name and put between pieces of text by `processing.prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from r1v_export.errors import CheckpointError, InputError
from r1v_export.processing.byte_level import BYTE_OF
from r1v_export.processing.kept_bpe import kept_bpe
from r1v_export.processing.tokenizer_files import MAX_ID, AddedToken, vocabulary_file
from r1v_export.processing.tokenizer_vocabulary import read_vocabulary
from r1v_export.quoting import shorten_value

IMAGE_TOKEN = "<IMG_CONTEXT>"
"""Its positions are replaced by image embeddings."""

_VISIBLE_TOKENS = frozenset({"<think>", "</think>"})
"""Kept in decoded text even where a tokenizer declares them special: they separate the reasoning from the answer."""

GROUNDING_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
"""InternVL's marks around what is named and where it is."""


class Tokenizer:
    """Text to ids and ids to text. Immutable, and safe to share between threads."""

    def __init__(
        self,
        plain: tokenizers.Tokenizer,
        added_tokens: Mapping[str, AddedToken],
        grounding_tokens: Collection[str] = (),
    ) -> None:
        """
        Args:
            plain: the byte-level BPE without any added token.
            added_tokens: the added tokens by name.
            grounding_tokens: names of added tokens to let through, see `with_grounding`.
        """
        self._plain = plain
        self.added_tokens = dict(added_tokens)
        self.grounding_tokens = tuple(grounding_tokens)
        self._names = {token.id: name for name, token in added_tokens.items()}
        self._hidden = {token.id for name, token in added_tokens.items() if self.hides(name)}

    @classmethod
    def from_folder(cls, folder: str | Path, keep: bool = False) -> Tokenizer:
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the added tokens of every tokenizer file.

        Args:
            keep: keep on disk what is read of a large vocabulary, for the next process, see `kept_bpe`.

        Raises:
            CheckpointError: a file is missing, damaged, contradicts another, is not a byte-level BPE, or does not give
                text back unchanged.
        """
        folder = Path(folder)
        if keep:
            return cls(*kept_bpe(folder))
        vocabulary = read_vocabulary(folder)
        return cls(vocabulary.open(vocabulary_file(folder)), vocabulary.added)

    def with_grounding(self, names: Iterable[str] = GROUNDING_TOKENS) -> Tokenizer:
        """The same tokenizer, with `<ref>`, `<box>` and `<quad>` shown in decoded text, and special in prompts, where
        anyone can then write them.

        Args:
            names: these tokens instead, as `prompt.grounding_tokens` of pipeline.json lists them; those that the
                tokenizer does not have stay text.
        """
        return Tokenizer(self._plain, self.added_tokens, [name for name in names if name in self.added_tokens])

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a model's embedding may have further, unused rows."""
        return 1 + max(*self._plain.get_vocab().values(), *self._names)

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
        tokens = [self._text_of(id_) for id_ in ids if id_ not in self._hidden]
        text: str = self._plain.decoder.decode([token for token in tokens if token is not None])
        return text

    def token_bytes(self, id_: int) -> bytes:
        """What a token adds to decoded text: `decode` is these bytes of all ids, joined and read as UTF-8."""
        token = None if id_ in self._hidden else self._text_of(id_)
        if token is None:
            return b""
        try:
            return bytes(BYTE_OF[character] for character in token)
        except KeyError:  # An added token may hold characters that stand for no byte.
            return token.encode()

    def _text_of(self, id_: int) -> str | None:
        if not 0 <= id_ < MAX_ID:  # the library takes 32 bits
            return None
        return self._names.get(id_) or self._plain.id_to_token(id_)

    def hides(self, token: str) -> bool:
        """Whether an added token is omitted from decoded text."""
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


def eos_token_ids(generation_config: Mapping[str, Any], vocab_size: int = MAX_ID) -> tuple[int, ...]:
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
