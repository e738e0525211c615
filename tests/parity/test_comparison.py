"""A whole check: what is damaged is caught, at the boundary where it is damaged."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from r1v_export.errors import CapabilityError, InputError, ParityError, UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.parity import CheckOptions, Endpoint, ParityReport, ParitySample, check
from r1v_export.parity.boundaries import BatchShares
from r1v_export.parity.comparison import COMPARED
from r1v_export.parity.diagnosis import CAUSES
from r1v_export.parity.report import to_html
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import Model, ReferenceEngine
from r1v_export.serialized.pipeline import PipelineDocument

Damaged = Callable[[Callable[[Model], None]], Endpoint]


def compare(reference: Endpoint, candidate: Endpoint, samples: list[ParitySample], **options) -> ParityReport:
    return check(reference, candidate, samples, CheckOptions(**{"precision": "fp32", "max_new_tokens": 10, **options}))


def nothing(model: Model) -> None:
    pass


def test_identical_engines_pass_with_zeros(reference: Endpoint, damaged: Damaged, samples: list[ParitySample]):
    report = compare(reference, damaged(nothing), samples, blocks=True)
    assert report.passed
    assert report.causes == ()
    report.raise_if_failed()
    errors = ("max_abs_error", "mean_abs_error", "relative_error", "max_relative_error", "mean_kl", "max_kl")
    assert all(b.metrics.get(metric, 0.0) == 0.0 for b in report.boundaries for metric in errors)
    agreements = ("top1_agreement", "token_agreement", "sequence_agreement", "min_row_cosine")
    assert all(b.metrics.get(metric, 1.0) == 1.0 for b in report.boundaries for metric in agreements)
    assert all(sample.divergence is None and sample.candidate is None for sample in report.samples)


def test_boundaries_come_in_the_order_of_the_data_flow(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
):
    names = [b.name for b in compare(reference, damaged(nothing), samples, blocks=True).boundaries]
    blocks = ["vision_block.0", "vision_block.1", "vision_block.2"]
    kinds = list(COMPARED)
    assert names == [*kinds[:2], *blocks, *(kind for kind in kinds[3:] if kind != "decoder_layer")]


def test_a_gate_logs_its_limits_and_the_first_bad_boundary(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample], caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.DEBUG, "r1v_export.parity"):
        report = compare(reference, damaged(patch_embedding), samples)
    begin, *rows, end = [vars(record) for record in caplog.records]
    assert (begin["gate"], begin["precision"], begin["compute"]) == ("arithmetic", "fp32", "float32")
    assert next(row["boundary"] for row in rows if not row["passed"]) == report.first_bad == end["first_bad"]
    assert end["samples"] == len(samples)


def patch_embedding(model: Model) -> None:
    model.vision_model.embeddings.patch_embedding.weight[5, 0, 3, 3] += 0.5


def vit_block(model: Model) -> None:
    model.vision_model.encoder.layers[1].mlp.fc1.weight *= 4


def last_vit_block(model: Model) -> None:
    model.vision_model.encoder.layers[2].ls2[7] = 0


def projector(model: Model) -> None:
    model.mlp1[1].weight[3, 8] += 0.2


def embedding_row_that_no_sample_uses(model: Model) -> None:
    model.language_model.model.embed_tokens.weight[417, 3] += 0.001


def decoder_layer(model: Model) -> None:
    model.language_model.model.layers[1].mlp.down_proj.weight[4, 4] += 0.2


def query_bias(model: Model) -> None:
    model.language_model.model.layers[0].self_attn.q_proj.bias += 0.1


def lm_head(model: Model) -> None:
    model.language_model.lm_head.weight[33] += 0.05


@pytest.mark.parametrize(
    ("damage", "boundary"),
    [
        (patch_embedding, "vision_block.0"),
        (vit_block, "vision_block.1"),
        (last_vit_block, "vision_block.2"),
        (projector, "projector"),
        (embedding_row_that_no_sample_uses, "embeds"),
        (decoder_layer, "prefill"),
        (query_bias, "prefill"),
        (lm_head, "prefill"),
    ],
)
def test_a_damaged_weight_is_caught_where_it_is(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample], damage: Callable[[Model], None], boundary: str
):
    report = compare(reference, damaged(damage), samples)
    assert report.first_bad == boundary
    with pytest.raises(ParityError, match=boundary) as caught:
        report.raise_if_failed()
    assert caught.value.exit_code == 3


def test_a_damaged_stage_does_not_taint_the_later_ones(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
):
    report = compare(reference, damaged(vit_block), samples)
    failed = {b.name for b in report.boundaries if not b.passed}
    assert {"vision_block.1", "vision_block.2", "vision", "end_to_end"} <= failed
    assert failed.isdisjoint({"pixels", "prompt", "vision_block.0", "projector", "embeds", "prefill", "decode"})


def test_a_damaged_embedding_row_is_named_with_its_token(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
):
    report = compare(reference, damaged(embedding_row_that_no_sample_uses), samples)
    text = reference.tokenizer.decode([417])
    assert f"token 417 ({text!r})" in report.causes[0]
    assert report.boundary("embeds").worst.index == (417, 3)


def test_a_damaged_row_of_lm_head_is_reported_from_a_damaged_layer(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
):
    causes = [compare(reference, damaged(damage), samples).causes for damage in (lm_head, decoder_layer)]
    assert causes[0][0].startswith("only 1 of ")
    assert "token 33 " in causes[0][0]
    assert not any("lm_head" in cause for cause in causes[1])


def test_a_nan_weight_is_named_as_such(reference: Endpoint, damaged: Damaged, samples: list[ParitySample]):
    def nan_weight(model: Model) -> None:
        model.mlp1[3].weight[2, 2] = math.nan

    report = compare(reference, damaged(nan_weight), samples)
    assert report.first_bad == "projector"
    boundary = report.boundary("projector")
    assert boundary.metrics["max_abs_error"] == math.inf
    assert "NaN or infinite values in the candidate" in boundary.problem
    assert boundary.worst.index[-1] == 2
    assert "NaN" in str(json.loads(report.model_dump_json())["boundaries"])


def test_float16_overflow_is_caught_and_explained(reference: Endpoint, damaged: Damaged, samples: list[ParitySample]):
    def overflowing(model: Model) -> None:
        model.vision_model.encoder.layers[2].mlp.fc2.bias[4] = 1e5
        model.half()

    report = compare(reference, damaged(overflowing), samples, precision="fp16", compute="float16")
    assert report.first_bad == "vision_block.2"
    assert "65504" in report.causes[0]


def test_causes_name_options_as_they_are_typed():
    causes = [cause for causes in CAUSES.values() for cause in causes]
    assert not any("=True" in cause for cause in causes)
    assert any(cause.endswith(": check --blocks") for cause in causes)


def broken_cache(endpoint: Endpoint) -> Endpoint:
    """An engine whose decoder writes each later token one slot too early."""

    class Decoder:
        def __init__(self, decoder) -> None:
            self.decoder, self.batch, self.capacity = decoder, decoder.batch, decoder.capacity

        def step(self, inputs_embeds, position_ids, write_index, length, *rest):
            late = int(inputs_embeds.shape[1] == 1)
            return self.decoder.step(inputs_embeds, position_ids, write_index - late, length - late, *rest)

    class Engine(ReferenceEngine):
        def decoder(self, batch: int, capacity: int):
            return Decoder(super().decoder(batch, capacity))

    return replace(endpoint, engine=Engine(endpoint.engine.model))


def test_a_wrong_cache_slot_shows_at_decode(reference: Endpoint, samples: list[ParitySample]):
    report = compare(reference, broken_cache(reference), samples)
    assert report.first_bad == "decode"
    of_the_cache, of_weights = report.causes[-2:]
    assert "cache_write_index" in of_the_cache
    assert "weights with them" not in of_the_cache, "a damaged one may hardly move the logits after the prompt"
    assert "a weight that moves" in of_weights


def spellbound(endpoint: Endpoint) -> Endpoint:
    """An engine that chooses <IMG_CONTEXT>, whatever it is asked."""

    class Decoder:
        def __init__(self, decoder) -> None:
            self.decoder, self.batch, self.capacity = decoder, decoder.batch, decoder.capacity

        def step(self, *inputs):
            logits_BPV = self.decoder.step(*inputs)
            logits_BPV[..., endpoint.pipeline.image_token_id] += 1e4
            return logits_BPV

    class Engine(ReferenceEngine):
        def decoder(self, batch: int, capacity: int):
            return Decoder(super().decoder(batch, capacity))

    return replace(endpoint, engine=Engine(endpoint.engine.model))


def preferring(endpoint: Endpoint, gap: float) -> Endpoint:
    """An engine whose first decoded row of each batch prefers token 33 by `gap` logits to any other."""

    class Decoder:
        def __init__(self, decoder) -> None:
            self.decoder, self.batch, self.capacity, self.decoded = decoder, decoder.batch, decoder.capacity, False

        def step(self, inputs_embeds, *rest):
            logits_BPV = self.decoder.step(inputs_embeds, *rest)
            if inputs_embeds.shape[1] == 1 and not self.decoded:
                self.decoded = True
                logits_BPV[0, -1, 33] = -np.inf
                logits_BPV[0, -1, 33] = logits_BPV[0, -1].max() + gap
            return logits_BPV

    class Engine(ReferenceEngine):
        def decoder(self, batch: int, capacity: int):
            return Decoder(super().decoder(batch, capacity))

    return replace(endpoint, engine=Engine(endpoint.engine.model))


@pytest.mark.parametrize(("gap", "passes"), [(0.02, True), (0.15, False)])
def test_a_near_tie_that_flips_is_agreement_and_another_flip_is_not(
    reference: Endpoint, samples: list[ParitySample], gap: float, passes: bool
):
    report = compare(
        preferring(reference, gap), preferring(reference, -gap), samples, precision="fp8", quantized_inputs=True
    )
    decode = report.boundary("decode")
    (agreement,) = (check for check in decode.checks if check.metric == "top1_agreement")
    assert decode.metrics["top1_agreement"] < agreement.limit
    assert (agreement.near_ties, agreement.passed) == (int(passes), passes)
    assert (agreement.value == 1.0) == passes
    assert report.first_bad == (None if passes else "decode")
    sentence = "1 near tie counted as agreement: within 0.1 in the reference&#39;s logits"
    assert (sentence in to_html(report).replace("'", "&#39;")) == passes


def test_a_model_that_writes_image_tokens_is_compared_to_the_end(reference: Endpoint, samples: list[ParitySample]):
    report = compare(spellbound(reference), spellbound(reference), samples)
    assert report.passed
    assert [sample.tokens for sample in report.samples] == [10] * len(samples)


def test_a_changed_merge_in_the_tokenizer_shows_at_the_prompt(
    reference: Endpoint, samples: list[ParitySample], tokenizer_files: Path, tmp_path: Path
):
    shutil.copytree(tokenizer_files, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "model" / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["model"]["merges"] = definition["model"]["merges"][:-60]
    file.write_text(json.dumps(definition))
    report = compare(reference, replace(reference, tokenizer=Tokenizer.from_folder(tmp_path / "model")), samples)
    assert report.first_bad == "prompt"
    assert report.boundary("prompt").metrics["token_agreement"] < 1


@pytest.fixture
def described(tokenizer: Tokenizer) -> Callable[..., PipelineDocument]:
    """The pipeline of a spec, and of a generation config if any."""
    return lambda spec, generation_config=None: describe_pipeline(spec, tokenizer, generation_config or {})


def test_another_template_shows_at_the_prompt(
    reference: Endpoint, spec: ModelSpec, described, samples: list[ParitySample]
):
    report = compare(
        reference, replace(reference, pipeline=described(spec.model_copy(update={"template": "internvl2_5"}))), samples
    )
    assert report.first_bad == "prompt"


def test_other_tiling_shows_at_the_pixels(reference: Endpoint, spec: ModelSpec, described, samples: list[ParitySample]):
    tiling = spec.tiling.model_copy(update={"max_tiles": 2})
    candidate = replace(reference, pipeline=described(spec.model_copy(update={"tiling": tiling})))
    report = compare(reference, candidate, samples)
    assert report.first_bad == "pixels"
    assert "shapes differ" in report.boundary("pixels").problem


def test_a_diverging_answer_tells_where_and_how_narrowly(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
):
    report = compare(reference, damaged(vit_block), samples, max_new_tokens=40)
    parted = [sample for sample in report.samples if sample.divergence]
    assert parted
    for sample in parted:
        parting = sample.divergence
        assert parting.reference_token != parting.candidate_token
        assert parting.margin >= 0
        assert sample.reference.startswith(parting.agreed.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_answers_are_graded_where_the_right_one_is_known(reference: Endpoint, samples: list[ParitySample]):
    prompt = reference.pipeline.prompt.model_copy(update={"thinking": ()})
    plain = replace(reference, pipeline=reference.pipeline.model_copy(update={"prompt": prompt}))
    written = compare(plain, plain, samples[:1]).samples[0].reference
    scored = [replace(samples[0], answer=answer) for answer in (f" {written.upper()}.", "something else", None)]
    correct = [sample.reference_correct for sample in compare(plain, plain, scored).samples]
    assert correct == [True, False, None]


def test_batches_do_not_change_the_answers(reference: Endpoint, samples: list[ParitySample]):
    answers = [
        [sample.reference for sample in compare(reference, reference, samples, batch_size=size).samples]
        for size in (1, 2, 16)
    ]
    assert answers[0] == answers[1] == answers[2]


def test_a_question_without_a_image_is_compared_too(reference: Endpoint, damaged: Damaged):
    report = compare(reference, damaged(lm_head), [ParitySample("text only", (), "What is a square?")])
    assert report.first_bad == "prefill"
    assert "vision" not in [boundary.name for boundary in report.boundaries]


def test_answers_stop_at_the_stop_token(
    reference: Endpoint, spec: ModelSpec, described, damaged: Damaged, samples: list[ParitySample]
):
    stop = max(reference.stop_ids)

    def stops_at_once(model: Model) -> None:
        model.language_model.model.norm.weight.zero_()
        model.language_model.lm_head.weight.zero_()

    candidate = damaged(stops_at_once)
    # All logits are equal, the first token of the vocabulary wins: make that the stop token.
    stopping = replace(candidate, pipeline=described(spec, {"eos_token_id": [0, stop]}))
    report = compare(stopping, stopping, samples, max_new_tokens=30)
    assert {sample.tokens for sample in report.samples} == {1}
    assert report.decode_steps == ()


def test_engines_of_different_models_are_refused(reference: Endpoint, spec: ModelSpec, samples: list[ParitySample]):
    language = spec.language.model_copy(update={"num_layers": 2})
    smaller = spec.model_copy(update={"language": language})
    with pytest.raises(ParityError, match="different models"):
        compare(reference, replace(reference, engine=ReferenceEngine(Model(smaller))), samples)


def test_blocks_need_engines_that_show_them(reference: Endpoint, samples: list[ParitySample]):
    class Opaque:
        def __init__(self, engine: ReferenceEngine) -> None:
            self.name, self.sizes, self.vision, self.projector = "opaque", engine.sizes, engine.vision, engine.projector
            self.embed, self.decoder = engine.embed, engine.decoder

    opaque = replace(reference, engine=Opaque(reference.engine))
    with pytest.raises(CapabilityError, match="opaque"):
        compare(reference, opaque, samples, blocks=True)
    assert compare(reference, opaque, samples).passed


def test_a_vision_tower_whose_blocks_were_fused_away_is_named_as_a_whole(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
):
    class Fused(ReferenceEngine):
        def vision_blocks(self, pixel_values):
            raise CapabilityError("no blocks here")

    engine = Fused(damaged(vit_block).engine.model)
    assert compare(reference, replace(reference, engine=engine), samples).first_bad == "vision"


def test_a_check_of_nothing_is_refused(reference: Endpoint):
    with pytest.raises(InputError, match="nothing to compare"):
        compare(reference, reference, [])


def test_a_precision_without_limits_is_refused_before_any_work(reference: Endpoint):
    never_encoded = [ParitySample("never encoded", (Image.new("RGB", (1, 1)),), "?")]
    with pytest.raises(UsageError, match="fp32"):
        compare(reference, reference, never_encoded, gate="quantization")


@pytest.mark.parametrize("batch_size", [2, 16])
def test_progress_counts_prompts_and_steps_also_where_one_batch_is_all(
    reference: Endpoint, samples: list[ParitySample], batch_size: int
):
    reported: list[float] = []

    def on_progress(done: float, total: float, status: str = "") -> None:
        reported.append(done / total)

    options = CheckOptions("fp32", batch_size=batch_size, max_new_tokens=6)
    report = check(reference, reference, samples, options, on_progress)
    steps = max(sample.tokens for sample in report.samples)
    assert reported == sorted(reported)
    assert reported[-1] == 1.0
    assert len({share for share in reported if share < 1.0}) >= len(samples) + 2 * (steps - 1)


def test_progress_divides_a_batch_by_the_shares_that_it_is_given(reference: Endpoint, samples: list[ParitySample]):
    reported: list[float] = []
    check(
        reference,
        reference,
        samples,
        CheckOptions("fp32", max_new_tokens=6),
        lambda done, total, status="": reported.append(done / total),
        BatchShares(encoding=0.6, prefill=0.5),
    )
    encoded = [0.6 * done / len(samples) for done in range(1, len(samples) + 1)]
    assert reported[: len(samples)] == pytest.approx(encoded)
    filled = 0.6 + 0.5 * 0.75 * 0.4
    assert min(abs(share - filled) for share in reported) < 1e-9


def test_every_stage_that_ran_often_enough_is_timed(reference: Endpoint, damaged: Damaged, samples: list[ParitySample]):
    report = compare(reference, damaged(nothing), samples, batch_size=2, measure_latency=True)
    assert [latency.stage for latency in report.latency] == ["vision", "projector", "embed", "prefill", "decode"]
    assert all(latency.reference_ms > 0 and latency.candidate_ms > 0 for latency in report.latency)


def test_sixteen_bit_rounding_is_within_its_own_tolerances_and_not_within_float32s(
    reference: Endpoint, damaged: Damaged, samples: list[ParitySample]
):
    candidate = damaged(Model.half)
    assert not compare(reference, candidate, samples).passed
    report = compare(reference, candidate, samples, precision="fp16", compute="float16", blocks=True)
    within = {b.name for b in report.boundaries if b.passed}
    assert {"vision_block.2", "vision", "projector", "embeds"} <= within


def test_the_reference_agrees_with_its_own_prompt_run_at_once(reference: Endpoint, samples: list[ParitySample]):
    """The walk's prefill logits are those of the plain model over the whole prompt, without cache or padding."""
    model = reference.engine.model
    inputs = reference.inputs(samples[1])
    with torch.no_grad():
        images = model.image_embeds(torch.from_numpy(inputs.pixel_values)).flatten(0, 1)
        embeds = model.embed(torch.from_numpy(inputs.input_ids)[None], images)
        logits = _logits_without_cache(model, embeds)
    first_token = int(np.argmax(logits))
    answer = compare(reference, reference, samples, max_new_tokens=1).samples[1].reference
    assert answer == reference.tokenizer.decode([first_token])


def _logits_without_cache(model: Model, embeds: torch.Tensor) -> np.ndarray:
    from r1v_export.reference.language import CacheStep, rotary_tables

    length = embeds.shape[1]
    step = CacheStep(torch.arange(length)[None], torch.zeros(1).long(), torch.tensor([length]))
    rotary = rotary_tables(model.spec.language, length)
    return model.language_model(embeds, rotary, step, None)[0][0, -1].numpy()
