"""`check_streamed`: the comparison of two engines of which one block each is held at a time, whatever the model's size.

Both engines take the same samples through their blocks, one block after the other, and are compared behind every block.
What the decoder is given behind a prompt is known beforehand, a reply, so that one pass over the layers computes the
prompt and every later token with the cache in place. Without answers of their own, engines are not compared by
`tokens`.

Shape letters: T tiles, S tokens, R rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r1v_export import contract
from r1v_export.errors import InputError
from r1v_export.log_event import log_event
from r1v_export.parity.activation_store import ActivationStore
from r1v_export.parity.boundary_statistics import BoundaryStatistics, no_images, of_row
from r1v_export.parity.comparison import environment, judge, log_boundaries, require_one_model, step_results
from r1v_export.parity.diagnosis import likely_causes
from r1v_export.parity.endpoints import BlockwiseEndpoint
from r1v_export.parity.metrics import LogitStatistics, TensorStatistics
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.ranges import range_facts, recorder, saturations
from r1v_export.parity.samples import ParitySample
from r1v_export.parity.schema import ParityReport, StreamedSample
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.runner.kv_cache import PREFILL_CHUNK, new_token_budget, plan_capacity

if TYPE_CHECKING:
    from r1v_export.contract import OpenCache, Run

_LOG = logging.getLogger(__name__)

ACTIVATION_MEMORY_BYTES = 1 << 30
"""Activations between blocks that are kept in memory before they are spilled to disk."""

_REFERENCE, _CANDIDATE, _OWN = "reference", "candidate", "own"
"""Whose activations: the reference's; the candidate's, given what the reference was given where vision, projector and
decoder begin; the candidate's on its own outputs throughout."""

_BLOCKS_BETWEEN = 4
"""Of either engine, apart from ViT blocks and decoder layers: before and after the tower, projector, head."""


def check_streamed(
    reference: BlockwiseEndpoint,
    candidate: BlockwiseEndpoint,
    samples: Iterable[ParitySample],
    options: CheckOptions,
    folder: Path,
    on_progress: ProgressCallback = ignore_progress,
) -> ParityReport:
    """Compare two engines block by block and end to end, holding one block at a time.

    Args:
        reference: what is taken as correct: PyTorch, with the checkpoint's own files.
        candidate: the engine under test, with the files of its bundle.
        samples: taken through the blocks together. Of replies, up to `options.max_new_tokens` tokens are used.
        options: what is compared, and by which limits; ViT blocks always are, and latencies are not measured.
        folder: for activations that memory does not hold; empty, or not there yet.
        on_progress: called after each block of either engine.

    Raises:
        UsageError: the table has no limits for such an engine.
        ParityError: the engines are of different models, so that nothing can be compared.
        BundleError: a block of the candidate cannot be opened.
        InputError: no samples, or one that cannot be used.
    """
    profile = options.profile
    require_one_model(reference.engine, candidate.engine)
    message = "gate %(gate)s, streamed: %(candidate)s against %(reference)s, limits of %(profile)s"
    names = {"candidate": candidate.engine.name, "reference": reference.engine.name}
    log_event(_LOG, logging.INFO, message, gate=options.gate, profile=profile, **names)
    store = ActivationStore(folder, ACTIVATION_MEMORY_BYTES)
    comparison = StreamedComparison(reference, candidate, store, options.max_new_tokens, on_progress)
    with recorder(reference.engine, options) as magnitudes:
        results = comparison.run(samples)
    found = comparison.found
    boundaries = judge(found.by_name, profile)
    first_bad = next((b.name for b in boundaries if not b.passed), None)
    log_boundaries(options.gate, boundaries, len(results), first_bad)
    return ParityReport(
        reference=reference.engine.name,
        candidate=candidate.engine.name,
        precision=options.precision,
        gate=options.gate,
        max_new_tokens=options.max_new_tokens,
        first_bad=first_bad,
        causes=likely_causes(first_bad, found.by_name, reference.tokenizer) if first_bad else (),
        boundaries=boundaries,
        decode_steps=step_results(found.steps),
        samples=(),
        streamed=tuple(results),
        environment=environment(),
        ranges=range_facts(magnitudes, options.compute),
        saturations=saturations(magnitudes),
    )


@dataclass(frozen=True)
class _Prepared:
    """A sample on its way through the blocks."""

    name: str
    question: str
    prompt_ids: np.ndarray
    own_prompt_ids: np.ndarray
    reply_ids: np.ndarray
    """All int64 [S]."""


@dataclass
class StreamedComparison:
    """Takes samples through both engines; the results are in `found`.

    Args:
        store: of what samples bring from block to block.
        max_reply_tokens: tokens of a reply that are used.
        on_progress: called after each block of either engine.
    """

    reference: BlockwiseEndpoint
    candidate: BlockwiseEndpoint
    store: ActivationStore
    max_reply_tokens: int
    on_progress: ProgressCallback = ignore_progress
    found: BoundaryStatistics = field(default_factory=BoundaryStatistics)
    _samples: list[_Prepared] = field(default_factory=list)
    _done: int = 0

    def run(self, samples: Iterable[ParitySample]) -> list[StreamedSample]:
        """Take all samples through all blocks.

        Raises:
            InputError: no samples, or one that cannot be used.
        """
        self._samples = [self._prepare(index, sample) for index, sample in enumerate(samples)]
        if not self._samples:
            raise InputError("There is nothing to compare.", expected="at least one sample", found="none")
        reference, candidate = self.reference.engine, self.candidate.engine
        self._tower_block(reference.vision_embeddings, candidate.vision_embeddings, None)
        for layer in range(reference.vision_layers):
            open_block, open_own_block = (partial(engine.vision_block, layer) for engine in (reference, candidate))
            self._tower_block(open_block, open_own_block, contract.vision_block(layer))
        self._tower_block(reference.vision_features, candidate.vision_features, "vision")
        self._project()
        self._embed()
        for layer in range(reference.sizes.layers):
            self._decoder_layer(layer)
        return self._compare_logits()

    def _prepare(self, index: int, sample: ParitySample) -> _Prepared:
        """Compare and keep what both sides make of a sample. From here on, both are given the reference's pixels:
        with others of its own, the candidate has failed already."""
        inputs, own_inputs = self.reference.inputs(sample), self.candidate.inputs(sample)
        self.found.record_inputs(inputs, own_inputs, sample.name)
        for whose in (_REFERENCE, _CANDIDATE):
            self.store.put((whose, index), inputs.pixel_values)
        positions = self.reference.pipeline.positions.max_positions
        longest = max(len(inputs.input_ids), len(own_inputs.input_ids))
        budget = new_token_budget(longest, self.max_reply_tokens, positions)
        reply_ids = np.array(self.reference.tokenizer.encode_text(sample.reply)[:budget], dtype=np.int64)
        return _Prepared(sample.name, sample.question, inputs.input_ids, own_inputs.input_ids, reply_ids)

    def _tower_block(self, reference: Callable[[], Run], candidate: Callable[[], Run], boundary: str | None) -> None:
        """Take every sample's tiles through a part of the tower, each engine on its own outputs, and compare."""
        self._through(reference, {_REFERENCE: _REFERENCE})
        self._through(candidate, {_CANDIDATE: _CANDIDATE})
        self._compare(boundary)

    def _project(self) -> None:
        """Compare what both make of the reference's features; the candidate's own take the same way."""
        projector = self.reference.engine.projector
        self._through(self.candidate.engine.projector, {_CANDIDATE: _OWN, _REFERENCE: _CANDIDATE})
        self._through(projector, {_REFERENCE: _REFERENCE})
        self._compare("projector")

    def _through(self, open_block: Callable[[], Run], from_to: dict[str, str]) -> None:
        """Replace every sample's activations by what a block makes of them; without tiles there are none.

        Args:
            from_to: whose activations are taken, and whose the results are, in this order.
        """
        block = open_block()
        for index in range(len(self._samples)):
            for source, target in from_to.items():
                self.store.put((target, index), block(self.store.get((source, index))))
        self._report()

    def _compare(self, boundary: str | None) -> None:
        for index, sample in enumerate(self._samples if boundary else ()):
            expected, found = (self.store.get((whose, index)) for whose in (_REFERENCE, _CANDIDATE))
            self.found.record(boundary or "", TensorStatistics.of(expected, found, sample.name))

    def _embed(self) -> None:
        """Compare all embeddings, and give the decoder its inputs: the reference's to both, and the candidate's own."""
        sizes = self.reference.engine.sizes
        embed, own_embed = self.reference.engine.embed(), self.candidate.engine.embed()
        self.found.record_vocabulary(embed, own_embed, sizes)
        for index, sample in enumerate(self._samples):
            images_NE, own_images_NE = (_flat(self.store.get((whose, index))) for whose in (_REFERENCE, _OWN))
            prompt_1SE = embed(sample.prompt_ids[None], images_NE)
            found_1SE = own_embed(sample.prompt_ids[None], images_NE)
            self.found.record("embeds", TensorStatistics.of(prompt_1SE[0], found_1SE[0], sample.name))
            reply_1SE = embed(sample.reply_ids[None], no_images(sizes))
            for whose in (_REFERENCE, _CANDIDATE):
                self.store.put((whose, index), np.concatenate((prompt_1SE, reply_1SE), axis=1))
            self.store.put((_OWN, index), own_embed(sample.own_prompt_ids[None], own_images_NE))

    def _decoder_layer(self, layer: int) -> None:
        self._through_layer(self.reference.engine.decoder_layer(layer), (_REFERENCE,))
        self._through_layer(self.candidate.engine.decoder_layer(layer), (_CANDIDATE, _OWN))
        self._compare(contract.decoder_layer(layer))

    def _through_layer(self, open_cache: OpenCache, chains: Sequence[str]) -> None:
        """Take every sample through a decoder layer: the prompt as a runner does, then one token at a time."""
        positions = self.reference.pipeline.positions.max_positions
        for index, sample in enumerate(self._samples):
            for whose in chains:
                hidden_1SE = self.store.get((whose, index))
                tokens = hidden_1SE.shape[1]
                prompt_tokens = tokens if whose == _OWN else len(sample.prompt_ids)
                starts = [*range(0, prompt_tokens, PREFILL_CHUNK), *range(prompt_tokens, tokens), tokens]
                run = open_cache(plan_capacity(tokens, positions))
                parts = [run(np.ascontiguousarray(hidden_1SE[:, start:end]), start) for start, end in pairwise(starts)]
                self.store.put((whose, index), np.concatenate(parts, axis=1))
        self._report()

    def _compare_logits(self) -> list[StreamedSample]:
        """Compare the logits behind each prompt and each token of its reply."""
        for endpoint, chains in ((self.reference, (_REFERENCE,)), (self.candidate, (_CANDIDATE, _OWN))):
            self._through_head(endpoint.engine.head(), chains)
        return [self._compare_sample(index, sample) for index, sample in enumerate(self._samples)]

    def _through_head(self, head: Run, chains: Sequence[str]) -> None:
        for index, sample in enumerate(self._samples):
            for whose in chains:
                hidden_SE = self.store.get((whose, index))[0]
                rows = 1 if whose == _OWN else 1 + len(sample.reply_ids)
                self.store.put((whose, index), head(np.ascontiguousarray(hidden_SE[-rows:])))
        self._report()

    def _compare_sample(self, index: int, sample: _Prepared) -> StreamedSample:
        expected_RV, found_RV, own_1V = (self.store.get((whose, index)) for whose in (_REFERENCE, _CANDIDATE, _OWN))
        self.found.record("prefill", of_row(0, expected_RV, found_RV, sample.name))
        for step in range(1, len(expected_RV)):
            self.found.record_step(step, of_row(step, expected_RV, found_RV, sample.name, step))
        self.found.record("end_to_end", of_row(0, expected_RV, own_1V, sample.name))
        return StreamedSample(
            name=sample.name,
            question=sample.question,
            prompt_tokens=len(sample.prompt_ids),
            reply=self.reference.tokenizer.decode(sample.reply_ids.tolist()),
            reply_tokens=len(sample.reply_ids),
            top1_agreeing=LogitStatistics.of(expected_RV, found_RV).top1_agreeing,
        )

    def _report(self) -> None:
        self._done += 1
        sizes, tower = self.reference.engine.sizes, self.reference.engine.vision_layers
        self.on_progress(self._done, 2 * (tower + sizes.layers + _BLOCKS_BETWEEN))


def _flat(embeds_TNE: np.ndarray) -> np.ndarray:
    return embeds_TNE.reshape(-1, embeds_TNE.shape[-1])
