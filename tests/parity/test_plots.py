"""Plots of a report where a broken engine's numbers leave what an axis usually has."""

from __future__ import annotations

import re

import pytest

from r1v_export.parity import CheckOptions, Endpoint, ParityReport, ParitySample, check
from r1v_export.parity.figures import NARROW_INCHES, WIDE_INCHES
from r1v_export.parity.plots import errors_by_boundary, errors_by_layer, errors_by_step, kl_by_boundary
from r1v_export.parity.report import to_html
from r1v_export.parity.schema import Check
from tests.browser import needs_chromium, opened, show


@pytest.fixture(scope="module")
def report(reference: Endpoint, samples: list[ParitySample]) -> ParityReport:
    return check(reference, reference, samples[:2], CheckOptions("fp8", max_new_tokens=8))


def broken(report: ParityReport, size: float) -> ParityReport:
    """With errors of that size from the decoder on, all of which failed."""
    boundaries = list(report.boundaries)
    for number, each in enumerate(boundaries):
        if each.name in ("prefill", "decode", "end_to_end"):
            checks = tuple(check.model_copy(update={"passed": False}) for check in each.checks)
            metrics = dict.fromkeys(each.metrics, size)
            boundaries[number] = each.model_copy(update={"metrics": metrics, "checks": checks})
        elif each.name in ("vision", "projector"):
            metrics = {**each.metrics, "relative_error": 4e-3 if each.name == "vision" else 3e-5}
            boundaries[number] = each.model_copy(update={"metrics": metrics})
    steps = [step.model_copy(update={"max_abs_error": size, "mean_kl": size}) for step in report.decode_steps]
    return report.model_copy(update={"boundaries": tuple(boundaries), "decode_steps": tuple(steps)})


@pytest.mark.filterwarnings("ignore:Attempting to set identical")
@pytest.mark.parametrize("size", [1e-45, 1e22, 3e38])
def test_errors_of_any_size_can_be_drawn(report: ParityReport, size: float):
    """The ends are those of float32. 1e22 came of damaged weights: as an integer it is too large for numpy."""
    for draw in (errors_by_boundary, kl_by_boundary, errors_by_step):
        assert (draw(broken(report, size)) or "").startswith("<svg"), draw.__name__


def test_what_is_far_beyond_any_limit_stands_at_the_edge_and_leaves_the_scale_to_what_passed(report: ParityReport):
    for draw in (errors_by_boundary, kl_by_boundary):
        beyond, within = draw(broken(report, 1e22)), draw(broken(report, 2.0))
        assert beyond is not None
        assert within is not None
        assert "right edge: more" in beyond
        assert "1.00e+22; out of tolerance" in beyond
        assert "right edge" not in within
        assert max(powers_of(beyond)) <= 3


def powers_of(svg: str) -> list[int]:
    """Exponents of the labels of decades."""
    found = re.findall(r">10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)<", svg)
    return [int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) for power in found]


def test_decades_are_written_as_text_which_no_parser_of_tex_reads(
    report: ParityReport, monkeypatch: pytest.MonkeyPatch
):
    """Parsing them took half of the time of a page."""

    def parse(*arguments: object) -> None:
        raise AssertionError(f"TeX: {arguments[1]}")

    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", parse)
    for draw in (errors_by_boundary, kl_by_boundary, errors_by_step):
        powers = powers_of(draw(broken(report, 0.5)) or "")
        assert len(powers) > 1
        assert powers == sorted(powers) or draw is errors_by_step
    within_a_decade = [
        step.model_copy(update={"max_abs_error": 2e-3 + step.step * 1e-4}) for step in report.decode_steps
    ]
    assert errors_by_step(report.model_copy(update={"decode_steps": tuple(within_a_decade)}))


@needs_chromium
@pytest.mark.parametrize("width_inches", [WIDE_INCHES, NARROW_INCHES])
def test_long_texts_of_what_failed_leave_no_value_on_a_limit_and_no_text_cut(report: ParityReport, width_inches: float):
    """The texts make the axis narrow, so that a value that was clear of its limit is not."""
    with opened(1280, "light") as page:
        for draw in (errors_by_boundary, kl_by_boundary):
            show(page, draw(broken(report, 1e22), width_inches) or "")
            crossed, cut = page.evaluate(
                """() => {
                  const svg = document.querySelector("svg").getBoundingClientRect();
                  const dashed = [...document.querySelectorAll("svg path")].filter((p) => p.style.strokeDasharray);
                  const lines = dashed.map((path) => path.getBoundingClientRect());
                  const texts = [...document.querySelectorAll("svg text")];
                  const box = (text) => text.getBoundingClientRect();
                  const meet = (t, l) => t.left < l.right && l.left < t.right && t.top < l.bottom && l.top < t.bottom;
                  const named = (found) => found.map((text) => text.textContent);
                  const crossed = texts.filter((text) => lines.some((line) => meet(box(text), line)));
                  const cut = texts.filter((t) => box(t).left < svg.left || box(t).right > svg.right);
                  return [named(crossed).concat(lines.length ? [] : ["no limits"]), named(cut)];
                }"""
            )
            assert crossed == []
            assert cut == []


def test_many_vision_blocks_are_plotted_by_layer_with_their_limit_and_not_as_rows(report: ParityReport):
    block = report.boundary("projector")
    checks = (Check(metric="relative_error", value=1e-3, relation="at most", limit=0.03, passed=True, reason="so"),)
    for count, rows in ((4, 4), (45, 0)):
        blocks = [
            block.model_copy(
                update={"name": f"vision_block.{i}", "metrics": {"relative_error": 1e-3}, "checks": checks}
            )
            for i in range(count)
        ]
        streamed = report.model_copy(update={"boundaries": (*blocks, *report.boundaries)})
        assert (errors_by_boundary(streamed) or "").count("vision_block.") == rows
        by_layer = errors_by_layer(streamed)
        assert (by_layer is None) == (rows > 0)
    assert by_layer is not None
    assert "limit of ViT blocks" in by_layer
    assert "decoder layers" not in by_layer


def test_answers_that_do_not_differ_are_not_said_to(report: ParityReport):
    many = tuple(report.samples[0].model_copy(update={"name": f"sample {i}"}) for i in range(14))
    assert "12 of 14 are shown." in to_html(report.model_copy(update={"samples": many}))


def test_ticks_of_decode_steps_are_whole_and_begin_with_the_first(report: ParityReport):
    for count in (2, 3, 64):
        first = report.decode_steps[0]
        steps = [first.model_copy(update={"step": step, "max_abs_error": 0.1}) for step in range(1, count + 1)]
        svg = errors_by_step(report.model_copy(update={"decode_steps": tuple(steps)}))
        assert svg is not None
        axis = svg[svg.index("steps-matplotlib.axis_3") : svg.index("steps-matplotlib.axis_4")]
        ticks = re.findall(r">(−?[\d.]+)</text>", axis)
        assert ticks
        assert count < 10 or set(ticks) >= {"10", "20", "60"}
        assert all(tick.isdigit() and 1 <= int(tick) <= count for tick in ticks)


def test_an_axis_whose_values_are_all_exact_has_whole_decades_alone(report: ParityReport):
    for draw in (errors_by_boundary, kl_by_boundary):
        svg = draw(report)
        assert svg is not None
        assert ">exact<" in svg
        assert len(powers_of(svg)) >= 4
        assert "×" not in svg


def of_layers(report: ParityReport, errors: list[float]) -> ParityReport:
    """With a decoder layer for each of these relative errors."""
    block = report.boundary("projector")
    layers = [
        block.model_copy(update={"name": f"decoder_layer.{i}", "metrics": {"relative_error": error}, "checks": ()})
        for i, error in enumerate(errors)
    ]
    return report.model_copy(update={"boundaries": (*layers, *report.boundaries)})


def texts_of_axis(svg: str, number: int) -> list[str]:
    """Labels of the first or the second axis of errors by layer."""
    axis = svg.partition(f'id="layers-matplotlib.axis_{number}"')[2].partition(f"matplotlib.axis_{number + 1}")[0]
    return re.findall(r">([^<>]+)</text>", axis)


def test_errors_by_layer_within_one_decade_have_whole_decades_for_labels(report: ParityReport):
    svg = errors_by_layer(of_layers(report, [0.012, 0.019, 0.031, 0.044]))
    assert svg is not None
    assert powers_of(svg) == [-2, -1]
    assert "×" not in svg


@pytest.mark.parametrize(
    ("count", "labels"),
    [
        (4, ["0", "1", "2", "3"]),
        (28, ["0", "5", "10", "15", "20", "25"]),
        (64, ["0", "10", "20", "30", "40", "50", "60"]),
    ],
)
def test_layers_are_counted_in_ones_twos_fives_and_tens(report: ParityReport, count: int, labels: list[str]):
    for width_inches in (WIDE_INCHES, NARROW_INCHES):
        svg = errors_by_layer(of_layers(report, [0.01 * 1.05**i for i in range(count)]), width_inches)
        assert svg is not None
        svg = svg.replace("layers-narrow-", "layers-")
        assert [text for text in texts_of_axis(svg, 1) if text != "layer"] == labels
