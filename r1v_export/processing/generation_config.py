"""The sampling that a checkpoint recommends in its generation_config.json, as transformers' `generate` applies it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from r1v_export.errors import BundleError
from r1v_export.generation import Sampling

NAME = "generation_config.json"

DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
"""What `generate` takes for a field that is null or missing. Source: transformers, `_get_default_generation_params`."""

_RANGES: dict[str, tuple[type[float], float, float, str]] = {
    "temperature": (float, 0, sys.float_info.max, "0 or more"),
    "top_p": (float, math.ulp(0.0), 1, "above 0 and at most 1"),
    "top_k": (int, 0, math.inf, "an integer of 0 or more"),
    "repetition_penalty": (float, math.ulp(0.0), sys.float_info.max, "above 0"),
    "max_new_tokens": (int, 1, math.inf, "an integer of 1 or more"),
}
"""Field -> type, min, max, and both in words."""

_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "min_p": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "stop_strings": (),
    "suppress_tokens": (),
    "top_h": (),
    "typical_p": (1,),
}
"""Fields that change tokens and are not supported -> values, other than null, that change nothing."""


def default_sampling(config: Mapping[str, Any], *, greedy: bool = False) -> Sampling:
    """How a checkpoint's answers are sampled where the caller asks for nothing else.

    Without `do_sample` that is greedy, with the repetition penalty of the file. `top_p` and `top_k` are kept then, for
    a caller who asks for a temperature.

    Args:
        config: the content of generation_config.json; may be empty.
        greedy: take only `max_new_tokens` from it.

    Raises:
        BundleError: a field that is used has a value out of its range.
    """
    tokens = _field(config, "max_new_tokens", Sampling.max_new_tokens)
    if greedy:
        return Sampling(max_new_tokens=int(tokens))
    do_sample = config.get("do_sample")
    if do_sample not in (None, True, False):
        raise _out_of_range("do_sample", "true or false", do_sample)
    fields = {name: _field(config, name, default) for name, default in DEFAULTS.items()}
    if not do_sample:
        fields["temperature"] = 0.0
        fields["top_k"] = _field(config, "top_k", 0)
    return Sampling(
        max_new_tokens=int(tokens),
        temperature=float(fields["temperature"]),
        top_p=float(fields["top_p"]),
        top_k=int(fields["top_k"]),
        repetition_penalty=float(fields["repetition_penalty"]),
    )


def unused_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of a generation_config.json that would change the tokens elsewhere and do nothing here."""
    return [
        name
        for name, neutral in _WITHOUT_EFFECT.items()
        if config.get(name) not in (None, [], {}) and config[name] not in neutral
    ]


def _field(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    kind, least, most, expected = _RANGES[name]
    is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise _out_of_range(name, expected, value)
    return kind(value)


def _out_of_range(name: str, expected: str, found: object) -> BundleError:
    return BundleError(
        f"The generation config's {name} is out of range.",
        where=f"{NAME}: {name}",
        expected=expected,
        found=repr(found)[:80],
        fix="correct the checkpoint's file and build again, or run with --greedy",
    )
