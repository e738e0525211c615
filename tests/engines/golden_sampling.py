"""Golden vectors of engines/sampling: the tokens that the Python sampler chooses, and numpy's random numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np

from r1v_export.generation import Sampling
from r1v_export.runner.sampling import Sampler, TokenLogprobs

STEPS = 10


def write(folder: Path) -> None:
    """Write everything that the tests of engines/sampling read below a new folder."""
    folder.mkdir(parents=True)
    rng, logits = random.Random(0), []
    cases = []
    for index in range(500):
        steps_SV = _logits(np.random.default_rng(index), rng)
        cases.append(_case(rng, steps_SV))
        logits.append(steps_SV)
    np.concatenate([each.ravel() for each in logits]).astype("<f4").tofile(folder / "logits.f32")
    seeds = [0, 1, 2, 12345, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**64 - 1, *(rng.randrange(2**64) for _ in range(50))]
    numbers = [{"seed": seed, "numbers": np.random.default_rng(seed).random(20).tolist()} for seed in seeds]
    content = {"steps": STEPS, "cases": cases, "random": numbers}
    (folder / "golden.json").write_text(json.dumps(content), encoding="utf-8")


def _logits(numbers: np.random.Generator, rng: random.Random) -> np.ndarray:
    """Logits [STEPS, V]: smooth ones, with ties, with infinities below, nearly equal, huge."""
    vocab = rng.choice([1, 2, 3, 7, 100, 300, 1000, 3000])
    made_SV = numbers.standard_normal((STEPS, vocab)) * rng.choice([0.1, 1, 3, 10])
    kind = rng.randrange(6)
    if kind == 0:
        made_SV = np.round(made_SV)
    elif kind == 1:
        made_SV[:, 1:][numbers.random((STEPS, vocab - 1)) < 0.3] = -np.inf
    elif kind == 2:
        made_SV = np.full((STEPS, vocab), 1.5)
    elif kind == 3:
        made_SV *= 1e36
    return made_SV.astype(np.float32)


def _case(rng: random.Random, steps_SV: np.ndarray) -> dict[str, Any]:
    vocab = steps_SV.shape[1]
    bias = {rng.randrange(vocab): rng.uniform(-100, 100) for _ in range(rng.choice([0, 0, 1, 5]))}
    settings: dict[str, Any] = {
        "temperature": rng.choice([0.0, 1e-320, 0.01, 0.6, 0.6, 1.0, 1.7, 50.0]),
        "top_p": rng.choice([1.0, 1.0, 0.95, 0.5, 0.01, 0.999999]),
        "top_k": rng.choice([0, 0, 1, 2, 20, 50, 5000]),
        "min_p": rng.choice([0.0, 0.0, 0.05, 0.5, 1.0]),
        "repetition_penalty": rng.choice([1.0, 1.0, 1.05, 0.8, 2.0, 1e-40, 1e300]),
        "presence_penalty": rng.choice([0.0, 0.0, 0.7, -2.0]),
        "frequency_penalty": rng.choice([0.0, 0.0, 0.3, 2.0]),
        "seed": rng.randrange(2 ** rng.choice([1, 8, 32, 64])),
    }
    sampling = Sampling(**settings, logit_bias=bias, logprobs=rng.choice([0, 1, 5, 20]))
    prompt = [rng.randrange(vocab) for _ in range(rng.randrange(6))]
    sampler = Sampler(sampling, prompt, vocab)
    tokens = [sampler.next(logits_V) for logits_V in steps_SV]
    logprobs = [_logprobs(sampler.logprobs(*step)) for step in zip(steps_SV, tokens, strict=True)]
    listed = [[id_, value] for id_, value in bias.items()]
    return settings | {
        "vocab": vocab, "logit_bias": listed, "prompt": prompt, "tokens": tokens, "logprobs": logprobs,
        "top_count": sampling.logprobs,
    }  # fmt: skip


def _logprobs(token: TokenLogprobs) -> list[Any]:
    """Id and log probability of the likeliest tokens, and that of the chosen one; null is negative infinity."""
    return [[id_, value if math.isfinite(value) else None] for id_, value in (*token.top, (-1, token.logprob))]
