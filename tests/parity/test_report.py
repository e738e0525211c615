"""The files: the same bytes for the same comparison, self-contained, escaped, and telling what happened."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import ValidationError

from r1v_export.parity import CheckOptions, Endpoint, ParityReport, ParitySample, check, write_report
from r1v_export.parity.figures import NARROW_INCHES
from r1v_export.parity.metric_text import share
from r1v_export.parity.plots import errors_by_boundary, errors_by_step, latency_by_stage
from r1v_export.parity.report import by_channel, megabytes, to_html, to_json, write_reports
from r1v_export.parity.schema import ReasoningFormat, Saturation
from r1v_export.parity.size_plot import accuracy_by_size
from r1v_export.quoting import printable
from r1v_export.reference.model import Model
from tests.detailed_report import detail

Damaged = Callable[[Callable[[Model], None]], Endpoint]


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.html = html
        self.words = ""
        self.marked: list[str] = []
        self._in: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._in and self._in[-1] == "mark":
            self.marked.append(data)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if attrs.get(name)]


Compare = Callable[[Callable[[Model], None]], ParityReport]


def damage_a_block(model: Model) -> None:
    model.vision_model.encoder.layers[1].mlp.fc1.weight *= 4


def rescale_a_little(model: Model) -> None:
    model.language_model.model.layers[0].mlp.up_proj.weight *= 1 + 1e-6


@pytest.fixture(scope="module")
def compare(reference: Endpoint, damaged: Damaged, samples: list[ParitySample]) -> Compare:
    return lambda damage: check(reference, damaged(damage), samples, CheckOptions("fp32", max_new_tokens=40))


@pytest.fixture(scope="module")
def failed(compare: Compare) -> ParityReport:
    return compare(damage_a_block)


@pytest.fixture(scope="module")
def passed(reference: Endpoint, damaged: Damaged, samples: list[ParitySample]) -> ParityReport:
    """With latencies, so with every plot."""
    options = CheckOptions("fp32", max_new_tokens=40, batch_size=2, measure_latency=True)
    return check(reference, damaged(rescale_a_little), samples, options)


@pytest.fixture(scope="module")
def failed_page(failed: ParityReport) -> Page:
    return Page(to_html(failed))


@pytest.fixture(scope="module")
def passed_page(passed: ParityReport) -> Page:
    return Page(to_html(passed))


def test_json_and_html_are_the_same_bytes_for_the_same_comparison(
    compare: Compare, failed: ParityReport, failed_page: Page
):
    again = compare(damage_a_block)
    assert to_json(again) == to_json(failed)
    assert to_html(again) == failed_page.html


def test_a_page_is_the_same_bytes_in_another_process(failed: ParityReport, tmp_path: Path):
    (tmp_path / "report.json").write_text(to_json(failed))
    script = (
        "import pathlib, sys; from r1v_export.parity import ParityReport; from r1v_export.parity.report import to_html;"
        "import r1v_export.pipeline.build; assert 'matplotlib' not in sys.modules, 'before anything is drawn';"
        "report = ParityReport.model_validate_json(pathlib.Path(sys.argv[1]).read_text());"
        "sys.stdout.buffer.write(to_html(report).encode())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "report.json")]
    elsewhere = subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": "1"}).stdout
    assert elsewhere.decode() == to_html(ParityReport.model_validate_json(to_json(failed)))


def test_json_reads_back_as_the_report(failed: ParityReport):
    again = ParityReport.model_validate_json(to_json(failed))
    assert to_json(again) == to_json(failed)
    assert again.first_bad == "vision_block.1"


@pytest.fixture(scope="module")
def detailed(passed: ParityReport) -> ParityReport:
    return detail(passed)


def test_a_page_shows_calibration_sensitivity_and_other_bundles(detailed: ParityReport, passed_page: Page):
    html = to_html(detailed)
    page = Page(html)
    for text in (
        "Keys of <b>layer 3</b> reach 120 in channel 7",
        "mixed-auto",
        "kl=0.02",
        "2.3 MB",
        "0.0123 nats",
        "int4: 0.0041",
        "fp8, chosen for 1 of 3",
        "30 of 32",
        "✓ chosen",
    ):
        assert text in page.words, text
    plots, before = (len([tag for tag, _ in each.tags if tag == "svg"]) for each in (page, passed_page))
    assert plots == before + 4, "two plots, each for a wide and for a narrow screen"
    outside = [url for name in ("src", "href", "xlink:href") for url in page.attributes(name)]
    assert all(url.startswith(("data:", "#")) for url in outside)


def test_no_column_of_correct_answers_without_any(detailed: ParityReport):
    unscored = [bundle.model_copy(update={"correct": 0, "scored": 0}) for bundle in detailed.bundles]
    assert "Correct answers" in Page(to_html(detailed)).words
    assert "Correct answers" not in Page(to_html(detailed.model_copy(update={"bundles": unscored}))).words


def test_a_boundary_without_a_limit_is_not_marked_as_passed(passed: ParityReport):
    last = passed.boundary("tokens")
    boundaries = [b.model_copy(update={"checks": ()}) if b is last else b for b in passed.boundaries]
    words = Page(to_html(passed.model_copy(update={"boundaries": boundaries}))).words
    assert "✓ tokens" in Page(to_html(passed)).words
    assert "✓ tokens" not in words
    assert "tokens (no limit)" in words


def test_a_page_of_a_build_that_is_not_quantized_tells_of_neither(passed_page: Page):
    assert "Calibration" not in passed_page.words
    assert "Accuracy against size" not in passed_page.words


def test_json_with_an_unknown_field_is_refused(failed: ParityReport):
    text = to_json(failed).replace('"gate"', '"surprise": 1, "gate"', 1)
    with pytest.raises(ValidationError, match="surprise"):
        ParityReport.model_validate_json(text)


def test_json_holds_no_time_path_or_latency(failed: ParityReport):
    text = to_json(failed)
    assert str(Path.cwd()) not in text
    assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d|/tmp/|/home/", text)
    assert '"latency": []' in text


def test_numbers_have_six_significant_digits(failed: ParityReport):
    numbers = re.findall(r'_error": (\d[\d.e-]*)', to_json(failed))
    digits = [re.sub(r"e.*|\.", "", number).lstrip("0") for number in numbers]
    assert numbers
    assert all(len(d) <= 6 for d in digits)


def test_both_files_are_written(failed: ParityReport, failed_page: Page, tmp_path: Path):
    files = write_report(failed, tmp_path / "report")
    assert [file.name for file in files] == ["parity.json", "parity.html"]
    assert files[0].read_text(encoding="utf-8") == to_json(failed)
    assert files[1].read_text(encoding="utf-8") == failed_page.html


@pytest.mark.parametrize("which", ["passed", "failed"])
def test_the_page_needs_no_other_file(passed_page: Page, failed_page: Page, which: str):
    page = {"passed": passed_page, "failed": failed_page}[which]
    assert not {"link", "script", "iframe", "object"} & {tag for tag, _ in page.tags}
    targets = [*page.attributes("src"), *page.attributes("href"), *page.attributes("xlink:href")]
    assert targets
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in targets)
    assert "@import" not in page.html
    assert not re.search(r"url\((?!#)", page.html)


def test_ids_on_the_page_are_unique_and_references_resolve(passed_page: Page):
    ids = passed_page.attributes("id")
    assert len(ids) == len(set(ids))
    used = {target[1:] for target in passed_page.attributes("xlink:href")}
    used |= set(re.findall(r"url\(#([^)]+)\)", passed_page.html))
    assert used <= set(ids)


def test_a_failure_names_its_boundary_and_causes_first(failed_page: Page):
    words = failed_page.words[failed_page.words.index("✗") :]
    assert words.index("vision_block.1") < words.index("a weight of this block is wrong") < words.index("Boundaries")


def test_a_pass_shows_every_limit_with_its_reason(passed: ParityReport, passed_page: Page):
    assert "it computes what PyTorch computes from the same weights" in passed_page.words
    assert all(check.reason in passed_page.words for boundary in passed.boundaries for check in boundary.checks)


def test_the_first_diverging_token_is_marked_on_both_sides(failed: ParityReport, failed_page: Page):
    partings = [sample.divergence for sample in failed.samples if sample.divergence]
    assert partings
    assert failed_page.marked == [
        printable(token) for parting in partings for token in (parting.reference_token, parting.candidate_token)
    ]


def test_each_shown_sample_has_its_images(passed_page: Page, samples: list[ParitySample]):
    images = [attrs for tag, attrs in passed_page.tags if tag == "img"]
    assert len(images) == sum(len(sample.images) for sample in samples)
    assert all(attrs["alt"] for attrs in images)


def test_text_of_users_and_models_is_never_markup(reference: Endpoint, samples: list[ParitySample]):
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    sample = ParitySample(attack, samples[0].images, attack, answer=attack)
    html = to_html(check(reference, reference, [sample], CheckOptions("fp32", max_new_tokens=3)))
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not page.attributes("onerror")
    assert attack in page.words


def test_plots_tell_their_content_in_words(passed_page: Page):
    labels = [attrs.get("aria-label", "") for tag, attrs in passed_page.tags if tag == "svg"]
    assert len(labels) == 8
    assert all(labels)
    assert all(labels.count(label) == 2 for label in labels), "once for a wide and once for a narrow screen"
    assert any("KL divergence" in label for label in labels)


def test_the_reference_has_its_name_sizes_their_units_and_limits_a_place_that_no_line_crosses(passed: ParityReport):
    clipped = Saturation(linear="mlp1.1", ratio=1.0004)
    words = Page(to_html(passed.model_copy(update={"reference": "pytorch", "saturations": (clipped,)}))).words
    assert "PyTorch, and the engine that is checked: candidate." in words
    assert "ytorch" not in words.replace("PyTorch", "")
    assert "mlp1.1: 0.04 % larger" in words
    far = passed.model_copy(update={"saturations": (Saturation(linear="mlp1.1", ratio=71.94),)})
    assert "mlp1.1: 71.9 times as large !" in Page(to_html(far)).words
    assert "largest error of a logit; dashed: limit" in words


def test_a_page_can_be_made_of_infinities(compare: Compare):
    def nan_weight(model: Model) -> None:
        model.mlp1[3].weight[2, 2] = float("nan")

    words = Page(to_html(compare(nan_weight))).words
    assert "∞" in words
    assert "NaN or infinite values in the candidate" in words


@pytest.mark.parametrize(("part", "text"), [(1.0, "100 %"), (0.99999, "99.99 %"), (0.5, "50 %"), (0.0, "0 %")])
def test_only_all_is_100_percent(part: float, text: str):
    assert share(part) == text


def test_the_pages_of_two_gates_link_to_each_other(passed: ParityReport, failed: ParityReport, tmp_path: Path):
    reports = (passed, failed.model_copy(update={"gate": "quantization"}))
    pages = [path.resolve() for path in write_reports(reports, tmp_path)]
    assert len(set(pages)) == 2
    for path, report in zip(pages, reports, strict=True):
        page = Page(path.read_text(encoding="utf-8"))
        links = [attrs for tag, attrs in page.tags if tag == "a" and not str(attrs["href"]).startswith("#")]
        assert list(dict.fromkeys((path.parent / str(link["href"])).resolve() for link in links)) == pages
        current = [(path.parent / str(link["href"])).resolve() for link in links if link.get("aria-current")]
        assert current == [path]
        assert all(each.title in page.words for each in reports)
        assert f"{'✓' if report.passed else '✗'} " in page.words[: page.words.index("Boundaries")]


def test_what_quantizing_costs_is_not_blamed_before_an_engine_that_computes_something_else(
    failed: ParityReport, passed: ParityReport
):
    cost = failed.model_copy(update={"gate": "quantization"})
    assert "Begin with the other comparison, which failed too" in Page(to_html(cost, (failed, cost))).words
    assert "Begin with" not in Page(to_html(cost, (passed, cost))).words
    assert "Begin with" not in Page(to_html(failed, (failed, cost))).words


def test_no_line_break_parts_an_option_of_what_to_try(failed: ParityReport):
    html = to_html(failed.model_copy(update={"next_steps": ("keep 16 bits: --budget kl=0.05",)}))
    assert '<li>keep 16 bits: <span class="whole">--budget</span> kl=0.05</li>' in html


def test_every_page_names_the_precision_that_it_is_about(passed: ParityReport, failed: ParityReport):
    for report in (passed, failed):
        for gate in ("arithmetic", "quantization"):
            page = Page(to_html(report.model_copy(update={"precision": "int4", "gate": gate})))
            verdict = page.words[page.words.index("✓" if report.passed else "✗") : page.words.index("Boundaries")]
            assert "in int4" in verdict


def test_counts_of_one_on_a_page_are_singular(detailed: ParityReport):
    assert detailed.calibration is not None
    calibration = detailed.calibration.model_copy(update={"samples": 1})
    page = Page(to_html(detailed.model_copy(update={"calibration": calibration, "samples": detailed.samples[:1]})))
    assert "1 sample." in page.words
    assert not re.findall(r"(?<![\d.-])1 (?:samples|tokens|answers|files|modules|boundaries|layers)\b", page.words)


def test_links_within_a_page_have_their_place(passed_page: Page):
    inside = [str(attrs["href"])[1:] for tag, attrs in passed_page.tags if tag == "a"]
    assert inside
    assert set(inside) <= set(passed_page.attributes("id"))


THINK = ReasoningFormat(tags=("<think>", "</think>"), is_opened=False)


@pytest.mark.parametrize(
    ("reasoning", "parts", "channels"),
    [
        (None, [("<think>a</think>b", False)], [("Text", [("<think>a</think>b", False)])]),
        (THINK, [("b", False)], [("Answer", [("b", False)])]),
        (THINK, [("<think>\n a </think>\n\nb", False)], [("Reasoning", [("a", False)]), ("Answer", [("b", False)])]),
        (THINK, [("<think>a", False)], [("Reasoning", [("a", False)])]),
        (THINK, [("<think></think>b", False)], [("Answer", [("b", False)])]),
        (
            THINK,
            [("<think>a", False), ("x", True), ("c</think>b", False)],
            [("Reasoning", [("a", False), ("x", True), ("c", False)]), ("Answer", [("b", False)])],
        ),
        (
            THINK,
            [("<think>a</think>b", False), ("x", True)],
            [("Reasoning", [("a", False)]), ("Answer", [("b", False), ("x", True)])],
        ),
        (
            THINK.model_copy(update={"is_opened": True}),
            [("a</think>b", False)],
            [("Reasoning", [("a", False)]), ("Answer", [("b", False)])],
        ),
    ],
)
def test_reasoning_and_answer_are_set_apart(
    reasoning: ReasoningFormat | None, parts: list[tuple[str, bool]], channels: list[tuple[str, list[tuple[str, bool]]]]
):
    assert by_channel(reasoning, parts) == channels


def test_a_failed_boundary_is_marked_by_color_shape_and_words(failed: ParityReport, passed: ParityReport):
    bad, good = errors_by_boundary(failed), errors_by_boundary(passed)
    assert bad is not None
    assert good is not None
    for sign in ("var(--bad)", "out of tolerance"):
        assert sign in bad
        assert sign not in good
    page = Page(to_html(failed))
    assert [attrs["class"] for tag, attrs in page.tags if tag == "span" and attrs.get("class") == "bad"]
    assert re.search(r"✗ \d+ ViT blocks \(first\)", page.words)


def test_a_plot_names_the_metric_that_failed_as_the_table_does(passed: ParityReport):
    check = passed.boundary("prefill").checks[0].model_copy(update={"metric": "top1_agreement", "passed": False})
    prefill = passed.boundary("prefill").model_copy(update={"checks": (check,), "passed": False})
    boundaries = tuple(prefill if b.name == "prefill" else b for b in passed.boundaries)
    svg = errors_by_boundary(passed.model_copy(update={"boundaries": boundaries}))
    assert svg is not None
    assert "out of tolerance in top-1 agreement" in svg


def test_no_share_of_answers_above_all_is_on_the_axis(detailed: ParityReport):
    all_right = [bundle.model_copy(update={"correct": 32}) for bundle in detailed.bundles]
    svg = accuracy_by_size([*all_right[1:], all_right[0].model_copy(update={"correct": 31})])
    assert svg is not None
    ticks = [float(number) for number in re.findall(r">(\d+(?:\.\d+)?)</text>", svg)]
    assert 100 in ticks
    assert max(ticks) == 100


def test_correct_answers_of_which_all_bundles_have_as_many_have_no_plot(detailed: ParityReport):
    alike = accuracy_by_size([bundle.model_copy(update={"correct": 31}) for bundle in detailed.bundles])
    assert alike is not None
    assert "orrect answers" not in alike
    assert "orrect answers" in (
        accuracy_by_size([detailed.bundles[0].model_copy(update={"correct": 31}), detailed.bundles[1]]) or ""
    )


def test_a_divergence_lower_than_drawn_has_a_marker_of_its_own(detailed: ParityReport):
    """fp32's is 0: with a marker as the others have it would be read off the axis as a thousandth of the largest."""
    shown = accuracy_by_size(detailed.bundles)
    alike = accuracy_by_size([bundle.model_copy(update={"mean_kl": 1e-3}) for bundle in detailed.bundles])
    assert shown is not None
    assert alike is not None
    assert "▼: lower than drawn" in shown
    assert "▼" not in alike


def test_a_limit_of_the_largest_divergence_is_not_drawn_as_one_of_the_mean(passed: ParityReport):
    svg = errors_by_step(passed)
    assert svg is not None
    assert "dashed: limit of the largest at any step" in svg


def test_labels_of_neighbors_by_size_are_at_different_heights(detailed: ParityReport):
    """All have one divergence, so the labels' heights differ by what sets them apart."""
    sizes = {"int4": 16_300_000, "fp8": 8_800_000, "fp32": 24_400_000}
    update = [
        bundle.model_copy(update={"mean_kl": 0.25, "size_bytes": sizes[bundle.name]}) for bundle in detailed.bundles
    ]
    svg = accuracy_by_size(update, NARROW_INCHES)
    assert svg is not None
    found = re.findall(r'y="([\d.]+)"[^>]*>(\w+): 0.250<', svg)
    heights = {name: float(y) for y, name in found}
    assert set(heights) == set(sizes)
    assert abs(heights["fp8"] - heights["int4"]) > 10
    assert abs(heights["int4"] - heights["fp32"]) > 10


def test_bars_of_latency_are_as_long_as_the_time(passed: ParityReport):
    """Paths of the bars begin at 0, so a bar's length over another's is the ratio of their times."""
    latency = passed.latency[0].model_copy(update={"reference_ms": 30.0, "candidate_ms": 10.0})
    svg = latency_by_stage(passed.model_copy(update={"latency": (latency,)}))
    assert svg is not None
    paths = re.findall(r'<path d="([^"]+)" clip-path', svg)
    reference, candidate = ([float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)] for path in paths)
    assert (max(reference) - min(reference)) / (max(candidate) - min(candidate)) == pytest.approx(3, rel=0.01)


def test_what_no_number_says_of_many_blocks_is_said_once_and_of_which(passed: ParityReport):
    vision = passed.boundary("vision")
    blocks = tuple(
        vision.model_copy(update={"name": f"vision_block.{i}", "problem": "9 NaN" if i > 2 else None})
        for i in range(45)
    )
    words = Page(to_html(passed.model_copy(update={"boundaries": (*blocks, *passed.boundaries)}))).words
    assert "vision_block.3: 9 NaN; likewise 41 more" in words
    assert words.count("9 NaN") == 1


def test_limits_of_a_pair_are_said_to_be_of_the_engine_that_rounds_more(passed: ParityReport):
    said = "the limits and their reasons are those of the one that rounds more."
    for gate in ("images", "decoder"):
        assert said in to_html(passed.model_copy(update={"gate": gate}))
    assert said not in to_html(passed)


def test_times_of_a_reference_that_records_magnitudes_are_said_to_include_that(passed: ParityReport):
    latency = passed.latency[0].model_copy(update={"reference_ms": 30.0, "candidate_ms": 10.0})
    measured = passed.model_copy(update={"latency": (latency,), "profile": "8-bit inputs"})
    said = "times include recording how large its tensors become, so that it is faster than shown."
    assert said in to_html(measured)
    for update in ({"profile": "fp32"}, {"gate": "quantization", "profile": "fp8"}, {"latency": ()}):
        assert said not in to_html(measured.model_copy(update=update))


@pytest.mark.parametrize(("size", "text"), [(999, "0.001"), (8_812_345, "8.8"), (38_412_345_678, "38412")])
def test_megabytes_have_decimals_where_they_tell_something(size: int, text: str):
    assert megabytes(size) == text
