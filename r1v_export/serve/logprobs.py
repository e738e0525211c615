"""Log probabilities of an answer's tokens, as the OpenAI API gives them: for chats and for continued texts.

They are the model's own, before temperature, penalties and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from r1v_export.runner.answer import Answer
from r1v_export.runner.sampling import TokenLogprobs
from r1v_export.serve.protocol import JsonObject

TokenBytes = Callable[[int], bytes]
"""Token id -> its bytes."""


def chat_token(token_id: int, found: TokenLogprobs, token_bytes: TokenBytes) -> JsonObject:
    """One token of a chat answer, with the likeliest tokens in its place."""
    top = [_token(other, logprob, token_bytes) for other, logprob in found.top]
    return {**_token(token_id, found.logprob, token_bytes), "top_logprobs": top}


def chat_logprobs(answer: Answer, token_bytes: TokenBytes) -> JsonObject | None:
    """Those of a chat answer: its own tokens as `content`, those of its reasoning and the end tag as `reasoning`."""
    if not answer.logprobs:
        return None
    pairs = zip(answer.token_ids, answer.logprobs, strict=False)
    tokens = [chat_token(token_id, found, token_bytes) for token_id, found in pairs]
    start = answer.reasoning_tokens
    return {"content": tokens[start:], "reasoning": tokens[:start], "refusal": None}


def text_logprobs(
    token_ids: Sequence[int], found: Sequence[TokenLogprobs], token_bytes: TokenBytes, offset: int = 0
) -> JsonObject | None:
    """Those of a continued text.

    Args:
        offset: characters before the first of these tokens.
    """
    if not found:
        return None
    texts = [_text(token_bytes(token_id)) for token_id in token_ids]
    offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
    top = [{_text(token_bytes(other)): logprob for other, logprob in each.top} for each in found]
    logprobs = [each.logprob for each in found]
    return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets}


def _token(token_id: int, logprob: float, token_bytes: TokenBytes) -> JsonObject:
    content = token_bytes(token_id)
    return {"token": _text(content), "logprob": logprob, "bytes": list(content)}


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")
