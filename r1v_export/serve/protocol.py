"""What the OpenAI-compatible routes take, as strict models: an unknown field is refused, never ignored.

Source: the OpenAI API reference (chat completions, completions). Fields below "Extensions" are those that vLLM and
SGLang take too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from r1v_export.generation import MOST_BIAS, MOST_LOGPROBS, MOST_PENALTY, Guide
from r1v_export.strict import StrictModel

MAX_CHOICES = 16
"""Answers to one request, at most."""

JsonObject = dict[str, Any]
"""A JSON object of a response."""

TOKEN_ID_PATTERN = "^[0-9]{1,9}$"
TokenId = Annotated[str, Field(pattern=TOKEN_ID_PATTERN)]
"""A token id, as a key of a JSON object."""

Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]


class TextPart(StrictModel):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(StrictModel):
    """Where an image is: a data URL, or http(s) where the server allows it."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"
    """Taken and without effect: tiling is the model's own."""


class ImagePart(StrictModel):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(StrictModel):
    """What replaces the template's own system message."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(StrictModel):
    """Text and images, in the order in which the model reads them."""

    role: Literal["user"]
    content: str | list[ContentPart]
    name: str | None = None


class AssistantMessage(StrictModel):
    """An earlier answer. A client may send its reasoning back too; whether the model reads it is the template's."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    name: str | None = None
    refusal: None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(StrictModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class TemplateOptions(StrictModel):
    """Options of the prompt's template."""

    enable_thinking: bool = True


class NamedSchema(StrictModel):
    """A JSON Schema that an answer keeps."""

    name: str
    schema_: Annotated[JsonObject, Field(alias="schema")]
    description: str | None = None
    """Taken and not used: what the model is to write is the prompt's to say."""
    strict: bool | None = None
    """Taken and without effect: the schema is always kept."""


class TextFormat(StrictModel):
    """An answer of any form."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(StrictModel):
    """An answer that is JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class SamplingOptions(StrictModel):
    """How one answer is sampled. What is omitted is the checkpoint's own."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: PositiveInt | None = None
    seed: NonNegativeInt | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    presence_penalty: Annotated[float, Field(ge=-MOST_PENALTY, le=MOST_PENALTY)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-MOST_PENALTY, le=MOST_PENALTY)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-MOST_BIAS, le=MOST_BIAS)]] | None = None

    response_format: ResponseFormat | None = None
    """The form of the answer, from where its reasoning has ended."""

    # Extensions
    guided_regex: str | None = None
    top_k: NonNegativeInt | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    ignore_eos: bool | None = None
    """The model's stop tokens end no answer: for load generators."""
    thinking_budget: NonNegativeInt | None = None
    """Tokens of reasoning, at most: then its end tag follows."""

    @property
    def logprob_count(self) -> int | None:
        """How many likeliest tokens are reported for each token; None reports no log probabilities at all."""
        return None

    @property
    def token_limit(self) -> int | None:
        """Tokens of an answer, at most, if the caller says."""
        return self.max_tokens

    @property
    def token_limit_field(self) -> str:
        """The field that `token_limit` is from."""
        return "max_tokens"

    @property
    def guide(self) -> Guide | None:
        """The form that the answer is to keep, if any."""
        if self.guided_regex is not None:
            return Guide.regex(self.guided_regex)
        if isinstance(self.response_format, JsonSchemaFormat):
            return Guide.json_schema(self.response_format.json_schema.schema_)
        return Guide.json_object() if isinstance(self.response_format, JsonObjectFormat) else None

    @model_validator(mode="after")
    def _require_one_form(self) -> SamplingOptions:
        if self.guided_regex is not None and self.response_format is not None:
            raise ValueError("response_format and guided_regex exclude each other; omit one of them")
        return self

    @property
    def changes(self) -> JsonObject:
        """What is said, as fields of `generation.Sampling`."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        fields: JsonObject = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.token_limit,
            "seed": self.seed,
            "stop": stop or None,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": {int(token): bias for token, bias in (self.logit_bias or {}).items()} or None,
            "min_p": self.min_p,
            "max_reasoning_tokens": self.thinking_budget,
            "logprobs": self.logprob_count,
            "guide": self.guide,
            "ignore_eos": self.ignore_eos,
        }
        return {name: value for name, value in fields.items() if value is not None}


class SamplingFields(SamplingOptions):
    """Fields of both completion routes."""

    model: str
    n: Choices = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Taken and not used; never logged."""

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class MessagesDocument(StrictModel):
    """A conversation by itself."""

    messages: Annotated[list[Message], Field(min_length=1)]


class ChatRequest(SamplingFields):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    metadata: dict[str, str] | None = None
    """Taken and not used; never logged."""
    store: Literal[False] | None = None

    # Extensions
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @property
    def thinks(self) -> bool:
        """Whether the model is to reason before it answers, where it knows how."""
        if self.enable_thinking is not None:
            return self.enable_thinking
        return self.chat_template_kwargs is None or self.chat_template_kwargs.enable_thinking

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def token_limit_field(self) -> str:
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _require_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true; add it, or omit top_logprobs")
        return self


class CompletionRequest(SamplingFields):
    """Body of `/v1/completions`: text without a template is continued."""

    prompt: str
    echo: Literal[False] = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs


class TokenizeRequest(StrictModel):
    """Body of `/tokenize`: either text, or a conversation as the model is given it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    enable_thinking: bool = True


class ErrorFields(StrictModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(StrictModel):
    """Body of every response that is an error."""

    error: ErrorFields
