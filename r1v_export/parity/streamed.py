"""`check_streamed`: the comparison of engines of which one block each is held at a time, whatever the model's size.

All engines take the same samples through their blocks, one block after the other, and are compared behind every block.
A quantized engine has two references, the fake-quantized model and the original: one walk serves both gates, so that
the engine computes once, and every block of the checkpoint is read from the disk once.

What the decoder is given behind a prompt is known beforehand, a reply, so that one pass over the layers computes the
prompt and every later token, one at a time with the cache in place.
Without answers of their own, engines are not compared by `tokens`.

Shape letters: T tiles, S tokens, R rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from r1v_export import contract
from r1v_export.contract import PREFILL_CHUNK
from r1v_export.errors import InputError
from r1v_export.log_event import log_event
from r1v_export.memory import opened
from r1v_export.parity.activation_store import ActivationStore
from r1v_export.parity.boundary_statistics import BoundaryStatistics, no_images, of_row
from r1v_export.parity.comparison import (
    COMPARED,
    environment,
    judge,
    log_boundaries,
    require_one_model,
    rounded_inputs,
    step_results,
)
from r1v_export.parity.diagnosis import diagnose
from r1v_export.parity.endpoints import BlockwiseEndpoint
from r1v_export.parity.metrics import LogitStatistics, TensorStatistics
from r1v_export.parity.options import CheckOptions
from r1v_export.parity.ranges import Magnitudes, range_facts, recorder, saturations
from r1v_export.parity.samples import ParitySample
from r1v_export.parity.schema import ParityReport, StreamedSample
from r1v_export.progress import ProgressCallback, ignore_progress
from r1v_export.runner.kv_cache import new_token_budget, plan_capacity

if TYPE_CHECKING:
    from r1v_export.contract import OpenCache, Run

_LOG = logging.getLogger(__name__)

ACTIVATION_MEMORY_BYTES = 1 << 30
"""Activations between blocks that are kept in memory before they are spilled to disk."""

Chain = tuple[Literal["reference", "candidate", "own"], int]
"""Whose activations, with the reference's index: a reference's; the candidate's, given what a reference was given where
projector and decoder begin; or the candidate's on its own outputs throughout."""

_OWN: Chain = ("own", 0)

_COMPARED = {**COMPARED, "decode": "logits of every later token, fed with a given reply"}

_BLOCKS_BETWEEN = 3
"""Apart from ViT blocks and decoder layers: before and after the tower, the projector."""


@dataclass(frozen=True)
class StreamedGate:
    """What a gate compares a candidate with, and how."""

    reference: BlockwiseEndpoint
    """What is taken as correct: PyTorch, with the checkpoint's own files."""
    options: CheckOptions
    """What is compared, and by which limits; ViT blocks always are, and latencies are not measured. Of replies, up to
    the first gate's `max_new_tokens` tokens are used."""


def check_streamed(
    gates: Sequence[StreamedGate],
    candidate: BlockwiseEndpoint,
    samples: Iterable[ParitySample],
    folder: Path,
    on_progress: ProgressCallback = ignore_progress,
    *,
    same_embeddings: bool = False,
    tower_share: float | None = None,
) -> list[ParityReport]:
    """Compare an engine block by block and end to end with one or more references, holding one block at a time.

    Args:
        gates: a report each.
        candidate: the engine under test, with the files of its bundle.
        samples: taken through the blocks together.
        folder: for activations that memory does not hold; empty, or not there yet.
        on_progress: called after each block of each engine.
        same_embeddings: all references have the same weights before the decoder: the first one's results stand for all.
        tower_share: of the time, estimated, in which tower and projector are compared; by their blocks if omitted.

    Raises:
        UsageError: the table has no limits for such an engine.
        ParityError: the engines are of different models, so that nothing can be compared.
        BundleError: a block of the candidate cannot be opened.
        InputError: no samples, or one that cannot be used.
    """
    for gate in gates:
        require_one_model(gate.reference.engine, candidate.engine)
        message = "gate %(gate)s, streamed: %(candidate)s against %(reference)s, limits of %(profile)s"
        names = {"candidate": candidate.engine.name, "reference": gate.reference.engine.name}
        log_event(_LOG, logging.INFO, message, gate=gate.options.gate, profile=gate.options.profile, **names)
    store = ActivationStore(folder, ACTIVATION_MEMORY_BYTES)
    comparison = StreamedComparison(
        [gate.reference for gate in gates],
        candidate,
        store,
        gates[0].options.max_new_tokens,
        same_embeddings,
        on_progress,
        tower_share,
    )
    with ExitStack() as recording:
        magnitudes = [recording.enter_context(recorder(gate.reference.engine, gate.options)) for gate in gates]
        results = comparison.run(samples)
    return [_report(*each, candidate) for each in zip(gates, comparison.found, results, magnitudes, strict=True)]


def _report(
    gate: StreamedGate,
    found: BoundaryStatistics,
    samples: Sequence[StreamedSample],
    magnitudes: Magnitudes | None,
    candidate: BlockwiseEndpoint,
) -> ParityReport:
    reference, options = gate.reference, gate.options
    boundaries, first_bad = judge(found.by_name, options.profile, _COMPARED)
    log_boundaries(options.gate, boundaries, len(samples), first_bad)
    diagnosis = diagnose(first_bad, found.by_name, reference.tokenizer, options, given_reply=True)
    return ParityReport(
        reference=reference.engine.name,
        candidate=candidate.engine.name,
        precision=options.precision,
        gate=options.gate,
        profile=options.profile,
        max_new_tokens=options.max_new_tokens,
        first_bad=first_bad,
        causes=diagnosis.causes,
        next_steps=diagnosis.next_steps,
        boundaries=boundaries,
        decode_steps=step_results(found.steps),
        samples=(),
        streamed=tuple(samples),
        environment=environment(),
        ranges=range_facts(magnitudes, options.compute),
        saturations=saturations(magnitudes),
        calibration=options.calibration,
        rounded_inputs=rounded_inputs(boundaries, options),
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
    """Takes samples through the references and the candidate; the results are in `found`, by reference.

    Args:
        store: of what samples bring from block to block.
        max_reply_tokens: tokens of a reply that are used.
        same_embeddings: the first reference computes vision, projector and embeddings for all.
        on_progress: called after each block of each engine.
        tower_share: of the time, estimated.
    """

    references: Sequence[BlockwiseEndpoint]
    candidate: BlockwiseEndpoint
    store: ActivationStore
    max_reply_tokens: int
    same_embeddings: bool = False
    on_progress: ProgressCallback = ignore_progress
    tower_share: float | None = None
    found: list[BoundaryStatistics] = field(default_factory=list)
    _samples: list[_Prepared] = field(default_factory=list)
    _own_as_given: bool = False
    """The candidate's own input embeddings are those it is given of the first reference, bit by bit."""
    _done: int = 0

    def run(self, samples: Iterable[ParitySample]) -> list[list[StreamedSample]]:
        """Take all samples through all blocks; return how each fared, by reference.

        Raises:
            InputError: no samples, or one that cannot be used.
        """
        self.found = [BoundaryStatistics() for _ in self.references]
        self._samples = [self._prepare(index, sample) for index, sample in enumerate(samples)]
        if not self._samples:
            fix = "ask at least one question"
            raise InputError("There is nothing to compare.", expected="at least one sample", found="none", fix=fix)
        engines = [*(self.references[index].engine for index in self._encoding), self.candidate.engine]
        self._tower_block([engine.vision_embeddings for engine in engines], None)
        for layer in range(self.candidate.engine.vision_layers):
            self._tower_block([partial(engine.vision_block, layer) for engine in engines], contract.vision_block(layer))
        self._tower_block([engine.vision_features for engine in engines], "vision")
        self._project()
        self._embed()
        for layer in range(self.candidate.engine.sizes.layers):
            self._decoder_layer(layer)
        return self._compare_logits()

    @property
    def _encoding(self) -> Sequence[int]:
        """Indices of the references that compute vision, projector and embeddings."""
        return range(1 if self.same_embeddings else len(self.references))

    def _encoder(self, index: int) -> int:
        """Index of the reference that encodes for reference `index`."""
        return 0 if self.same_embeddings else index

    def _prepare(self, index: int, sample: ParitySample) -> _Prepared:
        """Compare and keep what both sides make of a sample. From here on, both are given the reference's pixels:
        with others of its own, the candidate has failed already."""
        reference = self.references[0]
        inputs, own_inputs = reference.inputs(sample), self.candidate.inputs(sample)
        for found in self.found:
            found.record_inputs(inputs, own_inputs, sample.name)
        for chain in (*(("reference", each) for each in self._encoding), _OWN):
            self.store.put((chain, index), inputs.pixel_values)
        positions = reference.pipeline.positions.max_positions
        longest = max(len(inputs.input_ids), len(own_inputs.input_ids))
        budget = new_token_budget(longest, self.max_reply_tokens, positions)
        reply_ids = np.array(reference.tokenizer.encode_text(sample.reply)[:budget], dtype=np.int64)
        return _Prepared(sample.name, sample.question, inputs.input_ids, own_inputs.input_ids, reply_ids)

    def _tower_block(self, openers: Sequence[Callable[[], Run]], boundary: str | None) -> None:
        """Take every sample's tiles through a part of the tower, each engine on its own outputs, and compare.

        Args:
            openers: of the references that encode, then of the candidate.
        """
        chains: list[Chain] = [*(("reference", each) for each in self._encoding), _OWN]
        for chain, open_block in zip(chains, openers, strict=True):
            self._through(open_block, {chain: chain})
        if boundary:
            for index in range(len(self.references)):
                self._compare(boundary, index, ("reference", self._encoder(index)), _OWN)

    def _project(self) -> None:
        """Compare what the candidate makes of the references' features; its own take the same way."""
        features: dict[Chain, Chain] = {("reference", each): ("candidate", each) for each in self._encoding}
        self._through(self.candidate.engine.projector, {_OWN: _OWN, **features})
        for each in self._encoding:
            self._through(self.references[each].engine.projector, {("reference", each): ("reference", each)})
        for index in range(len(self.references)):
            encoder = self._encoder(index)
            self._compare("projector", index, ("reference", encoder), ("candidate", encoder))

    def _through(self, open_block: Callable[[], Run], from_to: Mapping[Chain, Chain]) -> None:
        """Replace every sample's activations by what a block makes of them; without tiles there are none.

        Args:
            from_to: whose activations are taken, and whose the results are, in this order.
        """
        block = opened(open_block)
        for index in range(len(self._samples)):
            for source, target in from_to.items():
                self.store.put((target, index), block(self.store.get((source, index))))
        self._report_progress()

    def _compare(self, boundary: str, reference: int, expected: Chain, found: Chain) -> None:
        for index, sample in enumerate(self._samples):
            arrays = self.store.get((expected, index)), self.store.get((found, index))
            self.found[reference].record(boundary, TensorStatistics.of(*arrays, sample.name))
        error = self.found[reference].by_name[boundary].metrics()["relative_error"]
        message = "behind %(boundary)s: relative error %(relative_error).2g from reference %(reference)d"
        log_event(_LOG, logging.INFO, message, boundary=boundary, relative_error=error, reference=reference)

    def _embed(self) -> None:
        """Compare all embeddings, and give the decoder its inputs: the references' to both, and the candidate's own."""
        sizes, own_embed = self.candidate.engine.sizes, self.candidate.engine.embed()
        embeds = [reference.engine.embed() for reference in self.references]
        for found, embed in zip(self.found, embeds, strict=True):
            found.record_vocabulary(embed, own_embed, sizes)
        for index, sample in enumerate(self._samples):
            own_images_NE = _flat(self.store.get((_OWN, index)))
            self.store.put((_OWN, index), own_embed(sample.own_prompt_ids[None], own_images_NE))
            images_NE = {each: _flat(self.store.get((("reference", each), index))) for each in self._encoding}
            for reference, embed in enumerate(embeds):
                encoder = self._encoder(reference)
                prompt_1SE = embed(sample.prompt_ids[None], images_NE[encoder])
                found_1SE = own_embed(sample.prompt_ids[None], images_NE[encoder])
                statistics = TensorStatistics.of(prompt_1SE[0], found_1SE[0], sample.name)
                self.found[reference].record("embeds", statistics)
                given_1SE = np.concatenate((prompt_1SE, embed(sample.reply_ids[None], no_images(sizes))), axis=1)
                self.store.put((("reference", reference), index), given_1SE)
                if reference == encoder:
                    self.store.put((("candidate", reference), index), given_1SE)
        self._own_as_given = all(self._same_prompt(index) for index in range(len(self._samples)))

    def _same_prompt(self, index: int) -> bool:
        own_1SE, given_1SE = self.store.get((_OWN, index)), self.store.get((("candidate", 0), index))
        prompt_1SE = given_1SE[:, : len(self._samples[index].prompt_ids)]
        return np.array_equal(own_1SE.view(np.uint32), np.ascontiguousarray(prompt_1SE).view(np.uint32))

    def _decoder_layer(self, layer: int) -> None:
        for index, reference in enumerate(self.references):
            self._through_layer(partial(reference.engine.decoder_layer, layer), [("reference", index)])
        self._through_layer(partial(self.candidate.engine.decoder_layer, layer), self._candidates)
        for index in range(len(self.references)):
            found: Chain = ("candidate", self._encoder(index))
            self._compare(contract.decoder_layer(layer), index, ("reference", index), found)

    @property
    def _candidates(self) -> list[Chain]:
        """The candidate's chains in the decoder."""
        return [*(("candidate", each) for each in self._encoding), *(() if self._own_as_given else (_OWN,))]

    def _through_layer(self, open_layer: Callable[[], OpenCache], chains: Sequence[Chain]) -> None:
        """Take every sample through a decoder layer as a runner does: the prompt, then one token at a time.

        References too: the same sums over other numbers of rows are rounded differently, and where an input is rounded
        to 8 bits by its token's own scale, a value next to a boundary then falls on its other side."""
        open_cache = opened(open_layer)
        positions = self.references[0].pipeline.positions.max_positions
        for index, sample in enumerate(self._samples):
            for chain in chains:
                hidden_1SE = self.store.get((chain, index))
                tokens = hidden_1SE.shape[1]
                prompt = tokens if chain == _OWN else len(sample.prompt_ids)
                starts = [*range(0, prompt, PREFILL_CHUNK), *range(prompt, tokens), tokens]
                run = open_cache(plan_capacity(tokens, positions))
                parts = [run(np.ascontiguousarray(hidden_1SE[:, start:end]), start) for start, end in pairwise(starts)]
                self.store.put((chain, index), np.concatenate(parts, axis=1))
        self._report_progress()

    def _compare_logits(self) -> list[list[StreamedSample]]:
        """Compare the logits behind each prompt and each token of its reply."""
        for index, reference in enumerate(self.references):
            self._through_head(reference.engine.head, [("reference", index)])
        self._through_head(self.candidate.engine.head, self._candidates)
        references, samples = range(len(self.references)), list(enumerate(self._samples))
        return [[self._compare_sample(each, index, sample) for index, sample in samples] for each in references]

    def _through_head(self, open_head: Callable[[], Run], chains: Sequence[Chain]) -> None:
        head = opened(open_head)
        for index, sample in enumerate(self._samples):
            for chain in chains:
                hidden_SE = self.store.get((chain, index))[0]
                rows = 1 if chain == _OWN else 1 + len(sample.reply_ids)
                self.store.put((chain, index), head(np.ascontiguousarray(hidden_SE[-rows:])))
        self._report_progress()

    def _compare_sample(self, reference: int, index: int, sample: _Prepared) -> StreamedSample:
        own: Chain = ("candidate", 0) if self._own_as_given else _OWN
        chains: list[Chain] = [("reference", reference), ("candidate", self._encoder(reference)), own]
        expected_RV, found_RV, own_RV = (self.store.get((chain, index)) for chain in chains)
        found = self.found[reference]
        found.record("prefill", of_row(0, expected_RV, found_RV, sample.name))
        for step in range(1, len(expected_RV)):
            found.record_step(step, of_row(step, expected_RV, found_RV, sample.name, step))
        found.record("end_to_end", of_row(0, expected_RV, own_RV, sample.name))
        return StreamedSample(
            name=sample.name,
            question=sample.question,
            prompt_tokens=len(sample.prompt_ids),
            reply=self.references[0].tokenizer.decode(sample.reply_ids.tolist()),
            reply_tokens=len(sample.reply_ids),
            top1_agreeing=LogitStatistics.of(expected_RV, found_RV).top1_agreeing,
        )

    def _report_progress(self) -> None:
        self._done += 1
        engine, references = self.candidate.engine, len(self.references)
        tower = (engine.vision_layers + _BLOCKS_BETWEEN) * (len(self._encoding) + 1)
        decoder = (engine.sizes.layers + 1) * (references + 1)
        share = tower / (tower + decoder) if self.tower_share is None else self.tower_share
        in_tower, behind = min(self._done, tower) / tower, max(self._done - tower, 0) / decoder
        self.on_progress(share * in_tower + (1 - share) * behind, 1.0)


def _flat(embeds_TNE: np.ndarray) -> np.ndarray:
    return embeds_TNE.reshape(-1, embeds_TNE.shape[-1])
