"""The Qwen2 decoder and its cache, against transformers' Qwen2ForCausalLM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from r1v_export.model_spec import LanguageSpec
from r1v_export.reference.language import CacheStep, LanguageModel, LayerCache, rotary_tables

VARIANTS = {
    "as Qwen2.5-32B": {"rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "as Qwen2.5-32B-Instruct": {"rms_norm_eps": 1e-6, "rope_theta": 1e6},
    "another theta": {"rms_norm_eps": 1e-6, "rope_theta": 5e3},
    "tied embeddings": {"tie_word_embeddings": True},
}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def oracle_of(model: LanguageModel, spec: LanguageSpec) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        intermediate_size=spec.intermediate_size,
        vocab_size=spec.vocab_size,
        rms_norm_eps=spec.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        max_position_embeddings=spec.max_position_embeddings,
        tie_word_embeddings=spec.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=None,
    )
    oracle = Qwen2ForCausalLM(config)
    oracle.load_state_dict(model.state_dict(), strict=True)
    return oracle.eval()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request, make_spec, randomize) -> tuple[LanguageModel, Qwen2ForCausalLM]:
    spec = make_spec(**request.param).language
    model = randomize(LanguageModel(spec))
    return model, oracle_of(model, spec)


@pytest.fixture(scope="module")
def model(make_spec, randomize) -> LanguageModel:
    return randomize(LanguageModel(make_spec().language))


def embeds(batch: int, seq: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, seq, 40, generator=torch.Generator().manual_seed(seed))


def at(write_index: list[int], seq: int) -> CacheStep:
    """A step of `seq` new tokens per row, row b starting at slot write_index[b]."""
    start = torch.tensor(write_index)
    return CacheStep(start[:, None] + torch.arange(seq), start, start + seq)


def uncached_logits(model: LanguageModel, inputs: Tensor) -> Tensor:
    batch, seq, _ = inputs.shape
    return model(inputs, rotary_tables(model.spec, seq), at([0] * batch, seq), None)[0]


@torch.no_grad()
def test_logits_equal_those_of_transformers(variant):
    model, oracle = variant
    inputs = embeds(2, 33)
    torch.testing.assert_close(uncached_logits(model, inputs), oracle(inputs_embeds=inputs).logits, **CLOSE)


@torch.no_grad()
def test_far_positions_are_rotated_as_in_transformers(variant):
    model, oracle = variant
    inputs, positions = embeds(1, 6), torch.arange(200, 206)[None]
    step = CacheStep(positions, torch.tensor([0]), torch.tensor([6]))
    ours, _ = model(inputs, rotary_tables(model.spec, 256), step, None)
    torch.testing.assert_close(ours, oracle(inputs_embeds=inputs, position_ids=positions).logits, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [13] + [1] * 7, [7, 7, 6]])
def test_cached_steps_of_any_length_equal_the_full_forward(model, chunks):
    inputs = embeds(2, 20)
    expected = uncached_logits(model, inputs)
    rotary, cache, done = rotary_tables(model.spec, 32), model.empty_cache(2, 32), 0
    for seq in chunks:
        step = at([done, done], seq)
        logits, cache = model(inputs[:, done : done + seq], rotary, step, cache)
        torch.testing.assert_close(logits, expected[:, done : done + seq], **CLOSE)
        done += seq


@torch.no_grad()
def test_rows_of_different_lengths_do_not_touch_each_other(model):
    """Prompts of 3, 11 and 7 tokens, padded to 11 with noise, in a cache full of noise; then five steps each."""
    lengths, steps, capacity = [3, 11, 7], 5, 24
    sequences = [embeds(1, length + steps, seed=length) for length in lengths]
    expected = [uncached_logits(model, sequence)[0] for sequence in sequences]
    rotary = rotary_tables(model.spec, capacity)
    noise = torch.full((3, 2, capacity, 10), 50.0)
    cache = [LayerCache(noise.clone(), noise.clone()) for _ in range(3)]

    padded = embeds(3, 11, seed=99) * 30
    for row, length in enumerate(lengths):
        padded[row, :length] = sequences[row][0, :length]
    last = torch.tensor(lengths)[:, None] - 1
    logits, cache = model(padded, rotary, at([0, 0, 0], 11), cache, last)
    torch.testing.assert_close(
        logits[:, 0], torch.stack([e[n - 1] for e, n in zip(expected, lengths, strict=True)]), **CLOSE
    )

    for n in range(steps):
        write_index = [length + n for length in lengths]
        new = torch.stack([s[0, w : w + 1] for s, w in zip(sequences, write_index, strict=True)])
        logits, cache = model(new, rotary, at(write_index, 1), cache, torch.tensor([[0], [0], [0]]))
        torch.testing.assert_close(
            logits[:, 0], torch.stack([e[w] for e, w in zip(expected, write_index, strict=True)]), **CLOSE
        )


@torch.no_grad()
def test_logits_of_some_tokens_of_each_row_are_those_of_the_full_forward(model):
    inputs = embeds(3, 9)
    everything = uncached_logits(model, inputs)
    index = torch.tensor([[8, 2], [0, 5], [4, 4]])
    chosen, _ = model(inputs, rotary_tables(model.spec, 9), at([0] * 3, 9), None, index)
    torch.testing.assert_close(chosen, everything[torch.arange(3)[:, None], index], **CLOSE)


@torch.no_grad()
def test_greedy_tokens_equal_those_of_transformers_generate(variant):
    model, oracle = variant
    new_tokens, prompt = 40, torch.randint(97, (1, 12), generator=torch.Generator().manual_seed(3))
    expected = oracle.generate(prompt, max_new_tokens=new_tokens, do_sample=False)[0, 12:].tolist()
    rotary, cache, ids, done, generated = rotary_tables(model.spec, 64), model.empty_cache(1, 64), prompt, 0, []
    while len(generated) < new_tokens:
        seq = ids.shape[1]
        logits, cache = model(model.model.embed_tokens(ids), rotary, at([done], seq), cache, torch.tensor([[seq - 1]]))
        done, ids = done + seq, logits.argmax(-1)
        generated.append(ids.item())
    assert generated == expected
    assert len(set(generated)) > 5  # not one token over and over


def test_an_empty_cache_has_the_models_type_and_the_contracts_shape(model):
    cache = model.to(torch.bfloat16).empty_cache(2, 16)
    model.float()
    assert len(cache) == 3
    assert {tensor.shape for layer in cache for tensor in layer} == {(2, 2, 16, 10)}
    assert {tensor.dtype for layer in cache for tensor in layer} == {torch.bfloat16}


def test_tied_embeddings_are_one_parameter(make_spec):
    tied = LanguageModel(make_spec(tie_word_embeddings=True).language)
    untied = LanguageModel(make_spec().language)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
