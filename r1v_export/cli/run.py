"""`r1v-export run`: ask a bundle about images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from r1v_export.cli.answers import print_answer, stream
from r1v_export.cli.chat import chat as converse
from r1v_export.cli.images import (
    STDIN,
    allow_url_option,
    image_opener,
    image_option,
    require_readable_stdin,
    stdin_is_terminal,
)
from r1v_export.cli.logs import say
from r1v_export.cli.other_targets import AUTO, other_targets_options
from r1v_export.cli.output import (
    LIBRARY_S_LOOP,
    WholeNumber,
    common_options,
    device_option,
    draft_tokens_option,
    engine_option,
    model_option,
    refuse_given,
    refuse_unread_model,
    shown_progress,
    target_option,
)
from r1v_export.cli.paths import OptionPath
from r1v_export.cli.sampling import choose_sampling, print_sampling, sampling_options
from r1v_export.cli.threads import threads_option
from r1v_export.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from r1v_export.bundle import Bundle
    from r1v_export.config import Device
    from r1v_export.generation import Sampling
    from r1v_export.runner.answer import TokenEvent
    from r1v_export.runner.base import BaseRunner

MAX_QUESTION_BYTES = 1 << 20
MAX_VIDEO_FRAMES = 4096


@click.command(short_help="Ask a bundle about images.")
@click.argument("bundle", type=OptionPath())
@click.argument("question", required=False)
@image_option
@allow_url_option
@click.option("--video", type=OptionPath(), help="Ask about frames of this video or animation.")
@click.option("--frames", type=WholeNumber(1, MAX_VIDEO_FRAMES), help="How many of them. [default: 8]")
@target_option
@other_targets_options
@engine_option
@model_option
@click.option("--no-think", is_flag=True, help="Answer without reasoning.")
@click.option("--grounding", is_flag=True, help="Let <ref>, <box> and <quad> through in questions and answers.")
@click.option("--answer-only", is_flag=True, help="Do not print the reasoning.")
@click.option("--chat", is_flag=True, help="Hold a conversation; questions come line by line from stdin.")
@sampling_options
@click.option("--verify", is_flag=True, help="First check the bundle's hashes and graphs, as verify does.")
@draft_tokens_option
@device_option
@threads_option
@common_options
def command(
    bundle: Path,
    question: str | None,
    images: tuple[str, ...],
    allow_url: bool,
    video: Path | None,
    frames: int | None,
    target: str | None,
    vision_target: str,
    decoder_target: str,
    engine: str | None,
    model: str | None,
    no_think: bool,
    grounding: bool,
    answer_only: bool,
    chat: bool,
    verify: bool,
    draft_tokens: int,
    device: Device,
    format_: str,
    **sampling: Any,
) -> None:
    """Ask BUNDLE a QUESTION, about images if any; the reasoning and the answer are streamed.

    A QUESTION of - is read from stdin. Tokens are sampled as the checkpoint's generation_config.json recommends, field
    by field where no option says otherwise; the sampling in use is printed on stderr.

    The bundle's hashes are not computed: that is `verify`'s, or --verify's. What is read is checked as it is opened.

    \f
    Raises:
        UsageError: options exclude each other, or would have no effect.
    """
    from r1v_export.bundle import Bundle
    from r1v_export.runner.open_runner import open_runner
    from r1v_export.runner.prompt_encoder import Request

    _require_one_source(images, video, frames, chat=chat, question=question)
    _require_effect(target, format_, no_think, sampling)
    text = _question(question, chat, shown=bool(images) or video is not None)
    if verify:
        from r1v_export.pipeline.verify import verify_bundle

        verify_bundle(bundle, shown_progress(format_, 3))
    opened = Bundle.open(bundle)
    chosen = choose_sampling(opened.pipeline.generation_config, **sampling)
    load = image_opener(opened.pipeline.image_policy, allow_url)
    loaded = [load(image) for image in images]
    if video is not None:
        text, loaded = _about_video(opened, text, video, frames)
    if format_ == "json":
        show = partial(print_answer, sampling=chosen, answer_only=answer_only, lines=chat)
    else:
        show = partial(stream, answer_only=answer_only)
    if engine is not None:
        refuse_given(click.get_current_context(), ("draft_tokens",), LIBRARY_S_LOOP, "omit it")
    # One question gains less than it takes to open what decodes several faster.
    decoder = None if decoder_target == AUTO and not chat else decoder_target
    runner = open_runner(bundle, target, model, device, engine, grounding, vision_target, decoder)
    runner.draft_tokens = draft_tokens
    if runner.image_note and (images or video or chat):
        say(runner.image_note)
    if runner.decoder_note:
        say(runner.decoder_note)
    print_sampling(chosen, opened.pipeline.generation_config)
    if chat:
        converse(_asking(runner, chosen, not no_think), _by_name(load), show, loaded)
    else:
        show(runner.generate([Request.ask(text, *loaded, think=not no_think)], chosen))


def _require_effect(target: str | None, format_: str, no_think: bool, sampling: Mapping[str, Any]) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: an option has no effect without, or with, another one.
    """
    refuse_unread_model(target)
    if sampling["logprobs"] is not None and format_ != "json":
        raise UsageError("Log probabilities are printed in JSON only.", where="--logprobs", fix="add --format json")
    if sampling["stop_in_reasoning"] and not sampling["stop"]:
        raise UsageError("There is no text to stop at.", where="--stop-in-reasoning", fix="add --stop TEXT, or omit it")
    if no_think and sampling["max_reasoning_tokens"] is not None:
        raise UsageError(
            "Without reasoning its tokens cannot be limited.",
            where="--no-think --max-reasoning-tokens",
            fix="pass one of the two options",
        )


def _question(question: str | None, chat: bool, shown: bool) -> str:
    """The text to ask; nothing for a conversation, whose questions come from stdin.

    Args:
        shown: images come with it, about which a blank question may be asked.
    """
    if chat:
        if question is not None:
            raise UsageError("A conversation takes its questions from stdin.", found=question[:80], fix="omit QUESTION")
        return ""
    if question is None or not (question.strip() or shown):
        raise UsageError(
            "There is no question.",
            where="QUESTION, the argument after BUNDLE",
            expected="a text, or - to read it from stdin",
            found="nothing" if question is None else "a blank text",
            fix='add one, such as "What do you see?", or pass --chat for a conversation',
        )
    if question != "-":
        return question
    if stdin_is_terminal():
        say("the question is read from the terminal; end it with Ctrl-D on a line of its own")
    content = sys.stdin.buffer.read(MAX_QUESTION_BYTES + 1)
    if len(content) > MAX_QUESTION_BYTES:
        most = f"at most {MAX_QUESTION_BYTES} bytes"
        fix = "ask a shorter one: no model has a context for more"
        raise InputError("The question is too long.", where="stdin", expected=most, found="more", fix=fix)
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        where, fix = f"stdin, byte {error.start}", "convert it, such as with iconv -t UTF-8"
        raise InputError("The question is not UTF-8.", where=where, found=error.reason, fix=fix) from error
    if not text:
        raise UsageError(
            "There is no question.",
            where="stdin, as QUESTION is -",
            expected="a text",
            found="a blank text" if content else "nothing",
            fix='pipe one in, such as: echo "What do you see?" | r1v-export run BUNDLE -',
        )
    return text


def _require_one_source(
    images: tuple[str, ...], video: Path | None, frames: int | None, *, chat: bool, question: str | None
) -> None:
    """
    Raises:
        UsageError: options that name images exclude each other.
    """
    require_readable_stdin(images, stdin_is_taken=chat or question == STDIN)
    if video is None and frames is not None:
        raise UsageError("--frames is for videos.", fix="add --video FILE")
    if video is not None and (images or chat):
        other = "--image" if images else "--chat"
        raise UsageError(f"--video and {other} exclude each other.", fix="omit one of them")


def _about_video(bundle: Bundle, question: str, video: Path, frames: int | None) -> tuple[str, list[Image.Image]]:
    """The question with a placeholder for each frame, and the frames."""
    from r1v_export.processing.video import DEFAULT_FRAMES, load_frames, with_frame_placeholders

    count, tile_size = frames or DEFAULT_FRAMES, bundle.spec.tiling.tile_size
    text = with_frame_placeholders(question, count)
    return text, load_frames(video, count, tile_size, bundle.pipeline.image_policy)


def _by_name(load: Callable[[str], Image.Image]) -> Callable[[str], Image.Image]:
    """`load` for a conversation, whose questions come from stdin."""

    def checked(source: str) -> Image.Image:
        require_readable_stdin([source], stdin_is_taken=True)
        return load(source)

    return checked


def _asking(
    runner: BaseRunner, sampling: Sampling, think: bool
) -> Callable[[str, list[Image.Image]], Iterator[TokenEvent]]:
    """A conversation's way to ask."""
    from r1v_export.runner.conversation import Conversation

    conversation = Conversation(runner, think=think)
    return lambda text, images: conversation.ask(text, images, sampling)
