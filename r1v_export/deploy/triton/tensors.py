"""Tensors of the Triton models, once: configurations are written from these tables, and the models read and answer by
their names. Tensors of the contract keep its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from r1v_export.contract import IMAGE_EMBEDS, INPUT_IDS, PIXEL_VALUES
from r1v_export.serialized.contract import SizesDocument

DataType = Literal["TYPE_STRING", "TYPE_INT64", "TYPE_FP32", "TYPE_BOOL"]


@dataclass(frozen=True)
class Tensor:
    """An input or output of a Triton model, as config.pbtxt has it.

    Attributes:
        dims: without the batch dimension of models that Triton batches; -1 is any size.
        optional: an input that a request may omit.
    """

    name: str
    data_type: DataType
    dims: tuple[int, ...]
    optional: bool = False


# Names that the contract does not have.
TEXT_INPUT, MESSAGES, PROMPT = "text_input", "messages", "prompt"
IMAGE, STREAM = "image", "stream"
SAMPLING_PARAMETERS, ENABLE_THINKING = "sampling_parameters", "enable_thinking"
TEXT_OUTPUT, REASONING_OUTPUT = "text_output", "reasoning_output"
TOKEN_IDS, LOGPROBS, FINISH_REASON, USAGE = "token_ids", "logprobs", "finish_reason", "usage"
TILES_PER_IMAGE, THINKING, STOP = "tiles_per_image", "thinking", "stop"

ORCHESTRATOR, PREPROCESS, VISION, LLM = MODELS = ("r1v", "r1v_preprocess", "r1v_vision", "r1v_llm")
"""The models, in the order in which a user meets them."""

_ANSWER = (
    Tensor(TOKEN_IDS, "TYPE_INT64", (-1,)),
    Tensor(REASONING_OUTPUT, "TYPE_STRING", (1,)),
    Tensor(TEXT_OUTPUT, "TYPE_STRING", (1,)),
    Tensor(LOGPROBS, "TYPE_STRING", (1,)),
    Tensor(FINISH_REASON, "TYPE_STRING", (1,)),
    Tensor(USAGE, "TYPE_STRING", (1,)),
)
"""One response of an answer: its newest tokens, of which there may be several or none, and what became certain of
reasoning and text. Only the last response has a finish reason and the usage, as JSON. `logprobs` is there where they
are asked for: JSON of `sampling_parameters.LogprobsDocument`."""

_QUESTION = (
    Tensor(TEXT_INPUT, "TYPE_STRING", (1,), optional=True),
    Tensor(MESSAGES, "TYPE_STRING", (1,), optional=True),
    Tensor(PROMPT, "TYPE_STRING", (1,), optional=True),
    Tensor(IMAGE, "TYPE_STRING", (-1,), optional=True),
    Tensor(ENABLE_THINKING, "TYPE_BOOL", (1,), optional=True),
)
"""Either a question with its images, or a conversation in the OpenAI API's JSON, or the beginning of a text that is
continued as it is. An image is an encoded file or a data URL."""

_SAMPLING = Tensor(SAMPLING_PARAMETERS, "TYPE_STRING", (1,), optional=True)
"""JSON of `sampling_parameters.SamplingParameters`."""


def inputs_of(model: str, sizes: SizesDocument) -> Sequence[Tensor]:
    """The inputs of a model, in order."""
    pixels = (3, sizes.tile_size, sizes.tile_size)
    embeds = (sizes.tokens_per_tile, sizes.hidden)
    return {
        ORCHESTRATOR: (*_QUESTION, _SAMPLING, Tensor(STREAM, "TYPE_BOOL", (1,), optional=True)),
        PREPROCESS: _QUESTION,
        VISION: (Tensor(PIXEL_VALUES, "TYPE_FP32", pixels),),
        LLM: (
            Tensor(INPUT_IDS, "TYPE_INT64", (-1,), optional=True),
            Tensor(IMAGE_EMBEDS, "TYPE_FP32", (-1, *embeds), optional=True),
            Tensor(TILES_PER_IMAGE, "TYPE_INT64", (-1,), optional=True),
            Tensor(THINKING, "TYPE_BOOL", (1,), optional=True),
            _SAMPLING,
            Tensor(STOP, "TYPE_BOOL", (1,), optional=True),
        ),
    }[model]


def outputs_of(model: str, sizes: SizesDocument) -> Sequence[Tensor]:
    """The outputs of a model, in order."""
    pixels = (-1, 3, sizes.tile_size, sizes.tile_size)
    return {
        ORCHESTRATOR: _ANSWER,
        PREPROCESS: (
            Tensor(INPUT_IDS, "TYPE_INT64", (-1,)),
            Tensor(PIXEL_VALUES, "TYPE_FP32", pixels),
            Tensor(TILES_PER_IMAGE, "TYPE_INT64", (-1,)),
            Tensor(THINKING, "TYPE_BOOL", (1,)),
        ),
        VISION: (Tensor(IMAGE_EMBEDS, "TYPE_FP32", (sizes.tokens_per_tile, sizes.hidden)),),
        LLM: _ANSWER,
    }[model]
