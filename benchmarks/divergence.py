"""How far one model's next-token distributions are from another's, over the right replies to held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from r1v_export.checkpoint.checkpoint import Checkpoint
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
