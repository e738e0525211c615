"""What fits, by hand and at its edges."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.gpu import fit_table
from r1v_export.errors import UsageError
from r1v_export.parallel import Parallel
from r1v_export.roofline.devices import DeviceSpec
from r1v_export.roofline.gpu_fit import Requests, facts, fit, gpu_memory, requests, step_times, usable_bytes
from r1v_export.roofline.gpu_model import GpuModel
from tests.tiny_models import tiny_spec

SPEC = tiny_spec()
ASKED = Requests(prompt=40, new_tokens=24, tiles=5, batch=3)
SLOW = DeviceSpec("slow", 90, {"float16": 1e-3}, 1, 1e-3, "made up")
"""1e9 operations and 1e6 bytes per second."""


def test_a_cache_holds_keys_and_values_of_every_token() -> None:
    memory = gpu_memory(GpuModel(SPEC, "float16"), ASKED)
    by_hand = 2 * SPEC.language.num_layers * SPEC.language.num_kv_heads * SPEC.language.head_dim * 2
    assert memory.cache_bytes_per_token == by_hand
    assert memory.cache_bytes == by_hand * 3 * 64
    assert memory.total_bytes == sum(
        (memory.vision_weight_bytes, memory.language_weight_bytes, memory.cache_bytes, memory.workspace_bytes)
    )


@pytest.mark.parametrize("changes", [{"kv_cache": "int8"}, {"parallel": Parallel(2)}, {"parallel": Parallel(1, 2)}])
def test_a_quantized_or_shared_cache_takes_half(changes) -> None:
    whole, half = (gpu_memory(GpuModel(SPEC, "float16", **each), ASKED) for each in ({}, changes))
    assert 2 * half.cache_bytes == whole.cache_bytes


def test_the_fullest_stage_is_the_one_that_counts() -> None:
    spec = tiny_spec(vocab_size=50_000, tie_word_embeddings=False)
    memory = gpu_memory(GpuModel(spec, "float16", parallel=Parallel(1, 2)), ASKED)
    table = 50_000 * spec.language.hidden_size * 2
    assert table < memory.language_weight_bytes < 2 * table


def test_the_largest_batch_and_context_fit_and_one_more_does_not() -> None:
    model = GpuModel(SPEC, "float16")
    memory_gb = 0.008
    found = fit(model, ASKED, memory_gb)
    assert found.largest_batch > 1

    def fits(asked: Requests) -> bool:
        return gpu_memory(model, asked).total_bytes <= usable_bytes(memory_gb)

    assert fits(replace(ASKED, batch=found.largest_batch))
    assert not fits(replace(ASKED, batch=found.largest_batch + 1))


def test_the_longest_context_is_cut_at_the_models_positions_and_at_the_memory() -> None:
    spec = tiny_spec(max_position_embeddings=1 << 20)
    model, asked = GpuModel(spec, "float16"), replace(ASKED, batch=8)
    context = fit(model, asked, 0.1).largest_context
    assert 64 < context < 1 << 20
    assert gpu_memory(model, replace(asked, new_tokens=context - 40)).total_bytes <= usable_bytes(0.1)
    assert gpu_memory(model, replace(asked, new_tokens=context - 39)).total_bytes > usable_bytes(0.1)
    assert fit(model, asked, 100).largest_context == 1 << 20


def test_where_the_weights_alone_do_not_fit_nothing_does() -> None:
    found = fit(GpuModel(SPEC, "float16"), ASKED, 1e-4)
    assert (found.fits, found.largest_batch, found.largest_context) == (False, 0, 0)


def test_what_is_not_given_is_an_image_with_a_question_and_an_answer() -> None:
    assert requests(SPEC) == Requests(5 * 4 + 64, 256 - 84, 5, 1)
    assert requests(SPEC, prompt=9) == Requests(9, 247, 2, 1)
    assert requests(SPEC, prompt=100, new_tokens=0, tiles=0, batch=2) == Requests(100, 0, 0, 2)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"prompt": 15, "tiles": 5}, "at least 20"),
        ({"prompt": 200, "new_tokens": 57}, "at most 256"),
        ({"tiles": 65}, "longer than the model's context"),
        ({"prompt": 257}, "longer than the model's context"),
    ],
)
def test_requests_beyond_the_prompt_or_the_context_are_refused(given, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        requests(SPEC, **given)


def test_a_step_takes_what_its_bytes_take_on_a_slow_memory() -> None:
    model = GpuModel(SPEC, "float16")
    steps = step_times(model, ASKED, SLOW)
    decode = steps["decode, 3 x 1 token at 52"]
    assert decode.bound == "memory"
    moved = decode.weight_bytes + decode.activation_bytes + decode.cache_bytes
    assert decode.memory_s == pytest.approx(moved / 1e6)
    assert list(steps) == ["vision, 5 tiles", "prefill, 3 x 40 tokens", "decode, 3 x 1 token at 52"]


def test_gpus_share_the_tiles() -> None:
    alone, shared = (
        step_times(GpuModel(SPEC, "float16", parallel=parallel), ASKED, SLOW)["vision, 5 tiles"]
        for parallel in (Parallel(), Parallel(1, 2))
    )
    assert shared.flops == alone.flops * 3 / 5


def test_facts_are_plain_and_say_what_is_estimated() -> None:
    found = facts(GpuModel(SPEC, "float16"), ASKED, SLOW)
    assert found["estimated"] == ["workspace_bytes"]
    assert list(found["fits"]) == ["slow", "24 GB", "48 GB", "80 GB", "141 GB"]
    assert found["requests"]["context"] == 64


def test_the_table_of_the_38b_is_what_is_computed_today() -> None:
    document = fit_table.DOCUMENT.read_text(encoding="utf-8")
    assert fit_table.written(document, fit_table.table(fit_table.spec_of(fit_table.PRESET))) == document
