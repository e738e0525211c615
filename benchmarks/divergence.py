"""How far one model's next-token distributions are from another's, over the right replies to held-out questions: whole
models, or a block at a time for those that do not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.contract import BlockwiseEngine
from r1v_export.memory import release_free_memory
from r1v_export.nano import dataset
from r1v_export.processing.prompt import Turn, encode, template_of
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.quantization.calibration.dataset import CalibrationSample, prepare
from r1v_export.quantization.calibration.raw_examples import RawExample
from r1v_export.reference.language import CacheStep, rotary_tables
from r1v_export.reference.model import Model


@dataclass(frozen=True)
class Question:
    """A held-out question with its correct reasoning and answer; the last `reply_tokens` tokens are the reply."""

    sample: CalibrationSample
    reply_tokens: int


def held_out(checkpoint: Checkpoint, count: int) -> list[Question]:
    """The first `count` questions that `evaluate.py` asks too, with their correct reasoning and answers."""
    spec, tokenizer = checkpoint.spec, Tokenizer.from_folder(checkpoint.folder)
    records = [
        RawExample(f"held-out {index}", (partial(_image, index),), sample.question, sample.reasoning, sample.answer)
        for index, sample in enumerate(dataset.samples("eval", count))
    ]
    questions = []
    for record, sample in zip(records, prepare(records, checkpoint).samples, strict=True):
        turn = Turn("user", record.prompt, images=1)
        prompt = encode(tokenizer, template_of(spec), [turn], [sample.tiles], spec.tokens_per_tile, think=True)
        questions.append(Question(sample, len(sample.token_ids) - len(prompt)))
    return questions


def _image(index: int) -> Image.Image:
    return dataset.sample("eval", index).image


@torch.inference_mode()
def run(model: Model, sample: CalibrationSample) -> Tensor:
    """Logits [tokens, vocab] of one sequence."""
    image_embeds_TNE = model.image_embeds(torch.from_numpy(sample.pixels()))
    ids_BS = torch.tensor([sample.token_ids])
    embeds_BSE = model.embed(ids_BS, image_embeds_TNE.flatten(0, 1))
    seq = ids_BS.shape[1]
    whole = CacheStep(torch.arange(seq)[None], torch.tensor([0]), torch.tensor([seq]))
    logits_BSV, _ = model.language_model(embeds_BSE, rotary_tables(model.spec.language, seq), whole, cache=None)
    return logits_BSV[0]


def distributions(model: Model, questions: Sequence[Question]) -> list[Tensor]:
    """Log-probabilities [reply tokens, vocab] that foresee each question's reply."""
    return [run(model, q.sample)[-q.reply_tokens - 1 : -1].log_softmax(-1) for q in questions]


def divergence(reference: Sequence[Tensor], found: Sequence[Tensor]) -> dict[str, float]:
    """Mean KL(reference || found) in nats, its 99th percentile, and the share of equal greedy choices."""
    kl = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(reference, found, strict=True)])
    same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(reference, found, strict=True)])
    return {"mean_kl": float(kl.mean()), "p99_kl": float(kl.quantile(0.99)), "top1": float(same.float().mean())}


@dataclass(frozen=True)
class Walked:
    """What a model taken block by block computes for questions: of each, log-probabilities [reply tokens, vocab] that
    foresee its reply, and its hidden states [tokens, E] behind every decoder layer."""

    distributions: list[Tensor]
    hidden_by_layer: list[list[np.ndarray]]


def walk(engine: BlockwiseEngine, questions: Sequence[Question]) -> Walked:
    """Take questions through a model that holds one block at a time."""
    tiles = [question.sample.pixels() for question in questions]
    openers = [engine.vision_embeddings, *(partial(engine.vision_block, i) for i in range(engine.vision_layers))]
    for open_block in (*openers, engine.vision_features, engine.projector):
        release_free_memory()
        block = open_block()
        tiles = [block(each) for each in tiles]
    embed, hidden = engine.embed(), []
    for question, images_TNE in zip(questions, tiles, strict=True):
        ids_1S = np.array([question.sample.token_ids], dtype=np.int64)
        hidden.append(embed(ids_1S, images_TNE.reshape(-1, images_TNE.shape[-1])))
    hidden_by_layer = []
    for layer in range(engine.sizes.layers):
        release_free_memory()
        open_cache = engine.decoder_layer(layer)
        hidden = [open_cache(each.shape[1])(each, 0) for each in hidden]
        hidden_by_layer.append([each[0] for each in hidden])
    release_free_memory()
    head, found = engine.head(), []
    for question, hidden_1SE in zip(questions, hidden, strict=True):
        rows = np.ascontiguousarray(hidden_1SE[0, -question.reply_tokens - 1 : -1])
        found.append(torch.from_numpy(head(rows)).log_softmax(-1))
    return Walked(found, hidden_by_layer)


def relative_errors(reference: Walked, found: Walked) -> list[float]:
    """||found - reference|| / ||reference|| of all tokens' hidden states, behind each decoder layer."""
    errors = []
    for expected, other in zip(reference.hidden_by_layer, found.hidden_by_layer, strict=True):
        error = sum(float(np.square(b - a, dtype=np.float64).sum()) for a, b in zip(expected, other, strict=True))
        errors.append((error / sum(float(np.square(a, dtype=np.float64).sum()) for a in expected)) ** 0.5)
    return errors
