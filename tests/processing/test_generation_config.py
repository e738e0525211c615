from __future__ import annotations

import json
import math

import pytest
import transformers

from r1v_export.errors import BundleError
from r1v_export.generation import Sampling
from r1v_export.processing.generation_config import DEFAULTS, default_sampling, unused_fields

PUBLISHED = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": 1}


def test_fields_that_are_not_given_are_those_of_transformers():
    theirs = transformers.GenerationConfig._get_default_generation_params()
    assert {name: theirs[name] for name in DEFAULTS} == DEFAULTS
    assert theirs["do_sample"] is False


def test_a_checkpoint_that_samples_is_sampled(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps(PUBLISHED))
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    sampling = default_sampling(PUBLISHED)
    assert (sampling.temperature, sampling.top_p) == (theirs.temperature, theirs.top_p)
    assert sampling == Sampling(temperature=0.6, top_p=0.95, top_k=50)


@pytest.mark.parametrize("config", [{}, {"do_sample": False}, {"do_sample": None, "temperature": 0.6}])
def test_a_checkpoint_that_does_not_sample_is_answered_greedily(config):
    assert default_sampling(config) == Sampling()


def test_a_greedy_checkpoint_keeps_its_penalty_and_its_length():
    config = {"repetition_penalty": 1.05, "max_new_tokens": 64, "top_p": 0.9, "top_k": 20}
    expected = Sampling(max_new_tokens=64, temperature=0, top_p=0.9, top_k=20, repetition_penalty=1.05)
    assert default_sampling(config) == expected


def test_greedy_takes_the_length_alone():
    config = {**PUBLISHED, "repetition_penalty": 1.05, "max_new_tokens": 64, "top_k": "many"}
    assert default_sampling(config, greedy=True) == Sampling(max_new_tokens=64)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.6"),
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", 2.5),
        ("top_k", True),
        ("repetition_penalty", 0),
        ("repetition_penalty", [1.0]),
        ("max_new_tokens", 0),
        ("do_sample", "true"),
        ("temperature", 10**400),
    ],
)
def test_a_value_out_of_range_names_the_field_and_the_way_out(name, value):
    with pytest.raises(BundleError, match=name) as error:
        default_sampling({"do_sample": True, name: value})
    assert "--greedy" in error.value.fix


def test_what_would_change_tokens_elsewhere_is_listed():
    config = {
        "num_beams": 4,
        "typical_p": 1.0,
        "min_p": 0.1,
        "bad_words_ids": [],
        "stop_strings": None,
        "use_cache": True,
    }
    assert unused_fields(config) == ["min_p", "num_beams"]
