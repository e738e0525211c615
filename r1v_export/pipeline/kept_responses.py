"""The model's own responses to calibration prompts without an answer, kept as soon as a batch of them is there: a
calibration that was stopped goes on without generating any of them again.

    RESUME-responses/DIGEST.json    token ids of the responses to a batch of prompts

DIGEST is over everything that decides them: the model, how it generates, and the batch's prompts and images. Batches
are kept whole, because among other neighbors a prompt's numbers differ by rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.config import BuildConfig
from r1v_export.errors import BundleError
from r1v_export.files import read_regular_bytes
from r1v_export.generation import Sampling
from r1v_export.gpus import require_device
from r1v_export.manifest import hash_file, to_json
from r1v_export.pipeline.calibration_cost import require_memory_for_responses
from r1v_export.pipeline.calibration_samples import MAX_RESPONSE_TOKENS
from r1v_export.processing.pipeline_document import describe_pipeline
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.quantization.artifact.documents import checkpoint_fingerprint
from r1v_export.quantization.calibration.raw_examples import RawExample
from r1v_export.quantization.calibration.resume import write_text
from r1v_export.reference.model import ReferenceEngine
from r1v_export.reference.model import load as load_reference
from r1v_export.runner.engine_runner import EngineRunner
from r1v_export.runner.prompt_encoder import Request
from r1v_export.strict import StrictModel, parse_json
from r1v_export.version import VERSION


class _Responses(StrictModel):
    token_ids: tuple[tuple[int, ...], ...]


class KeptResponses:
    """Generates the model's own greedy responses, reasoning included, with the PyTorch reference. The model is loaded
    for the first that is not kept.

    Args:
        folder: keeps them, for the same calibration after an interruption; the caller removes it.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, config: BuildConfig) -> None:
        self.folder, self.checkpoint, self.config = folder, checkpoint, config

    def __call__(self, examples: Sequence[RawExample]) -> Sequence[Sequence[int]]:
        """The token ids of the response to each example of a batch, its stop token included.

        Raises:
            CapabilityError: the whole model in float32 does not fit into memory.
            BundleError: what is kept is damaged.
        """
        path = self.folder / f"{self._digest(examples)}.json"
        if path.is_file():
            what, fix = "Kept responses are damaged", f"remove {path} and calibrate again"
            return parse_json(_Responses, read_regular_bytes(path), BundleError, what, where=path, fix=fix).token_ids
        requests = [Request.ask(example.prompt, *example.load_images()) for example in examples]
        answers = self._runner.answers(requests, Sampling(max_new_tokens=MAX_RESPONSE_TOKENS))
        responses = _Responses(token_ids=tuple(tuple(answer.token_ids) for answer in answers))
        write_text(path, to_json(responses.model_dump(mode="json")))
        return responses.token_ids

    @cached_property
    def _runner(self) -> EngineRunner:
        require_device(self.config.device)
        require_memory_for_responses(self.config, self.checkpoint.spec)
        tokenizer = Tokenizer.from_folder(self.checkpoint.folder)
        engine = ReferenceEngine(load_reference(self.checkpoint).to(self.config.device))
        pipeline = describe_pipeline(
            self.checkpoint.spec, tokenizer, self.checkpoint.generation_config, image_policy=self.config.image_policy
        )
        return EngineRunner(engine, tokenizer, pipeline)

    @cached_property
    def _model(self) -> str:
        """What decides the responses, but for the prompts."""
        decides = {
            "producer": VERSION,
            "checkpoint": checkpoint_fingerprint(self.checkpoint),
            "files": {path.name: hash_file(path).sha256 for path in self.checkpoint.auxiliary_files()},
            "image_policy": self.config.image_policy,
            "device": self.config.device,
            "max_new_tokens": MAX_RESPONSE_TOKENS,
        }
        return to_json(decides)

    def _digest(self, examples: Sequence[RawExample]) -> str:
        digest = hashlib.sha256(self._model.encode())
        for example in examples:
            images = example.load_images()
            digest.update(to_json([example.prompt, [image.size for image in images]]).encode())
            for image in images:
                digest.update(np.asarray(image.convert("RGB")).tobytes())
        return digest.hexdigest()
