"""Whether an imported quantized model still models text, which two engines with the same values cannot show.

A layout that is decoded incorrectly is decoded so by both endpoints of the gate. So the likelihood that the reference
gives to correct replies to calibration questions is compared with what needs no model: the replies' own token
frequencies.

Shape letters: B replies, S tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from r1v_export.contract import PREFILL_CHUNK, BlockwiseEngine
from r1v_export.memory import opened
from r1v_export.parity.boundaries import embed_prompt, image_embeds
from r1v_export.parity.endpoints import Endpoint
from r1v_export.parity.metrics import log_softmax
from r1v_export.parity.schema import FEWEST_TEXT_TOKENS, TextFacts
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.runner.kv_cache import KVCache, plan_capacity, prefill

if TYPE_CHECKING:
    from r1v_export.contract import OpenCache, Run


ROWS_AT_ONCE = 8
"""Predictions of a reply that are rated together, next to the head: each is several float64 arrays [vocabulary]."""


class Text(Protocol):
    """A question about images with its right reply: a `CalibrationSample`."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Token ids of prompt and reply, in order."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt; the reply follows."""
        ...

    def pixels(self) -> np.ndarray:
        """pixel_values [tiles, 3, size, size]."""
        ...


AnyText = TypeVar("AnyText", bound=Text)


def fewest_texts(texts: Sequence[AnyText]) -> list[AnyText]:
    """The texts with the shortest prompts, which are those with the fewest tiles; as many as a likelihood needs.

    For a model of which a text takes minutes.
    """
    chosen: list[AnyText] = []
    tokens = 0
    for text in sorted(texts, key=lambda text: text.prompt_tokens):
        if tokens >= FEWEST_TEXT_TOKENS:
            break
        chosen.append(text)
        tokens += len(text.token_ids) - text.prompt_tokens
    return chosen


def score_texts(
    endpoint: Endpoint, texts: Sequence[Text], on_progress: ProgressCallback = ignore_progress
) -> TextFacts | None:
    """Measure how likely an engine finds the replies, token by token; None if there are none.

    Args:
        texts: decoded together.
        on_progress: called after each token of the replies.
    """
    texts = [text for text in texts if len(text.token_ids) > text.prompt_tokens]
    if not texts:
        return None
    replies = [text.token_ids[text.prompt_tokens :] for text in texts]
    embeds_SE = [_embeds(endpoint, text) for text in texts]
    prompts_SE = [embeds[: text.prompt_tokens] for embeds, text in zip(embeds_SE, texts, strict=True)]
    longest = max(len(text.token_ids) for text in texts)
    capacity = plan_capacity(longest, endpoint.pipeline.positions.max_positions)
    cache = KVCache(endpoint.engine.decoder(len(texts), capacity))
    logits_BV = prefill(cache, prompts_SE, threading.Event())
    nll = entropy = 0.0
    for step in range(steps := max(map(len, replies))):
        rows = [row for row, reply in enumerate(replies) if step < len(reply)]
        nll, entropy = np.add((nll, entropy), _surprise(logits_BV[rows], [replies[row][step] for row in rows]))
        goes_on_B = np.array([step + 1 < len(reply) for reply in replies], dtype=np.int64)
        if goes_on_B.any():
            latest = [min(text.prompt_tokens + step, len(text.token_ids) - 1) for text in texts]
            embeds_B1E = np.stack([e[at : at + 1] for e, at in zip(embeds_SE, latest, strict=True)])
            logits_BV = cache.append(embeds_B1E, goes_on_B)
        on_progress(step + 1, steps)
    return _facts(replies, nll, entropy, endpoint.engine.sizes.vocab)


def score_texts_by_blocks(
    engine: BlockwiseEngine, texts: Sequence[Text], on_progress: ProgressCallback = ignore_progress
) -> TextFacts | None:
    """The same with one block of weights held at a time; progress is called after each block."""
    texts = [text for text in texts if len(text.token_ids) > text.prompt_tokens]
    if not texts:
        return None
    hidden = _through([text.pixels() for text in texts], engine.vision_embeddings)
    blocks = engine.vision_layers + engine.sizes.layers + 1
    for layer in range(engine.vision_layers):
        hidden = _through(hidden, partial(engine.vision_block, layer))
        on_progress(layer + 1, blocks)
    hidden = _through(_through(hidden, engine.vision_features), engine.projector)
    embed = engine.embed()
    # The last token of a reply predicts nothing that is known.
    hidden = [
        embed(np.array([text.token_ids[:-1]], dtype=np.int64), images_TNE.reshape(-1, images_TNE.shape[-1]))
        for text, images_TNE in zip(texts, hidden, strict=True)
    ]
    for layer in range(engine.sizes.layers):
        hidden = _through_layer(hidden, partial(engine.decoder_layer, layer))
        on_progress(engine.vision_layers + layer + 1, blocks)
    head, nll, entropy = opened(engine.head), 0.0, 0.0
    replies = [text.token_ids[text.prompt_tokens :] for text in texts]
    for text, reply, hidden_1SE in zip(texts, replies, hidden, strict=True):
        before_RE = hidden_1SE[0, text.prompt_tokens - 1 :]
        for start in range(0, len(reply), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            logits_RV = head(np.ascontiguousarray(before_RE[rows]))
            nll, entropy = np.add((nll, entropy), _surprise(logits_RV, reply[rows]))
    return _facts(replies, nll, entropy, engine.sizes.vocab)


def _through(arrays: Sequence[np.ndarray], open_block: Callable[[], Run]) -> list[np.ndarray]:
    block = opened(open_block)
    return [block(array) for array in arrays]


def _through_layer(embeds: Sequence[np.ndarray], open_layer: Callable[[], OpenCache]) -> list[np.ndarray]:
    """[1, S, E] of every text behind a decoder layer, which is given back before the next one is opened."""
    open_cache = opened(open_layer)
    return [_with_cache(embeds_1SE, open_cache) for embeds_1SE in embeds]


def _with_cache(embeds_1SE: np.ndarray, open_cache: OpenCache) -> np.ndarray:
    tokens = embeds_1SE.shape[1]
    run = open_cache(tokens)
    starts = range(0, tokens, PREFILL_CHUNK)
    parts = [run(np.ascontiguousarray(embeds_1SE[:, start : start + PREFILL_CHUNK]), start) for start in starts]
    return np.concatenate(parts, axis=1)


def _surprise(logits_RV: np.ndarray, tokens: Sequence[int]) -> tuple[float, float]:
    """Negative log-likelihood of the token that follows each row, and the entropy of the predictions; sums, in nats."""
    log_p = log_softmax(logits_RV)
    return -float(log_p[range(len(log_p)), list(tokens)].sum()), -float((np.exp(log_p) * log_p).sum())


def _facts(replies: Sequence[Sequence[int]], nll: float, entropy: float, vocab: int) -> TextFacts:
    tokens = sum(map(len, replies))
    return TextFacts(
        texts=len(replies),
        tokens=tokens,
        nll=nll / tokens,
        unigram_nll=_entropy(Counter(token for reply in replies for token in reply)),
        prediction_entropy=entropy / tokens,
        uniform_nll=math.log(vocab),
    )


def _embeds(endpoint: Endpoint, text: Text) -> np.ndarray:
    """Embeddings [S, E] of prompt and reply."""
    images_NE = image_embeds(endpoint.engine, text.pixels())
    return embed_prompt(endpoint.engine, np.array(text.token_ids, dtype=np.int64), images_NE)


def _entropy(counts: Counter[int]) -> float:
    """In nats: what the best predictor without any context needs for each token."""
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())
