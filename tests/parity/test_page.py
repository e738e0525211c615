"""The page of a parity report in a browser: readable in light and dark, wide and narrow."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image
from playwright.sync_api import expect

from r1v_export.manifest import FileEntry
from r1v_export.parity import CheckOptions, Endpoint, ParityReport, ParitySample, check
from r1v_export.parity.figures import NARROW_INCHES, WIDE_INCHES
from r1v_export.parity.metric_text import distinct
from r1v_export.parity.plots import engine_name, errors_by_boundary, errors_by_layer, errors_by_step
from r1v_export.parity.provenance import HashedFiles, Provenance
from r1v_export.parity.report import stages, to_html
from r1v_export.parity.schema import Check, LayerRange, RangeFacts, ReasoningFormat, Saturation, TextFacts
from r1v_export.reference.model import Model
from tests.browser import VIEWS, faint_texts, needs_chromium, opened, scrolling_tables, show, unreachable_scrollers
from tests.detailed_report import detail

pytestmark = needs_chromium


def damage_a_block(model: Model) -> None:
    model.vision_model.encoder.layers[1].mlp.fc1.weight *= 4


@pytest.fixture(scope="module")
def report(
    reference: Endpoint, damaged: Callable[[Callable[[Model], None]], Endpoint], samples: list[ParitySample]
) -> ParityReport:
    options = CheckOptions("fp32", max_new_tokens=40, batch_size=2, measure_latency=True)
    return check(reference, damaged(damage_a_block), samples, options)


@pytest.fixture(scope="module")
def html(report: ParityReport) -> str:
    """A page with every plot, answers that differ and are all reasoning, a clipped input, large tensors and an
    unbroken question."""
    layers = [f"language_model.model.layers.{i}" for i in range(2)]
    large = [LayerRange(layer=layer, tensor=f"{layer}.mlp.down_proj.input", magnitude=9e4) for layer in layers]
    thinking = ReasoningFormat(tags=("<think>", "</think>"), is_opened=True)
    many = [report.samples[i % 5].model_copy(update={"name": f"above-below {i}"}) for i in range(14)]
    update = {
        "reasoning": thinking,
        "saturations": (Saturation(linear=f"{layers[0]}.mlp.down_proj", ratio=1.0004),),
        "samples": [*many, many[0].model_copy(update={"question": "x" * 200})],
        "ranges": RangeFacts(dtype="float16", largest=65504.0, layers=tuple(large)),
    }
    return to_html(detail(report).model_copy(update=update))


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_every_text_stands_out_and_nothing_is_cut(html, width, theme):
    with opened(width, theme) as page:
        show(page, html)
        assert page.locator("mark").count() > 0
        assert faint_texts(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert unreachable_scrollers(page) == []
        assert set(scrolling_tables(page)) <= {"All metrics"}


def test_letters_of_plots_are_no_smaller_than_12_pixels_on_a_narrow_screen(html):
    with opened(500, "light") as page:
        show(page, html)
        sizes = page.evaluate(
            """() => [...document.querySelectorAll("svg text")]
              .filter((text) => text.getClientRects().length)
              .filter((text) => !text.closest("[id*=mathtext]") && !text.querySelector("tspan"))
              .map((text) => parseFloat(getComputedStyle(text).fontSize)
                * text.closest("svg").getBoundingClientRect().width / text.closest("svg").viewBox.baseVal.width)"""
        )
        assert min(sizes) >= 12


@pytest.mark.parametrize("width", [1280, 860, 500])
def test_every_plot_fits_its_page_with_all_its_texts(html, width):
    with opened(width, "light") as page:
        show(page, html)
        figures, scrolling, cut = page.evaluate(
            """() => {
              const shown = [...document.querySelectorAll("figure svg")].filter((e) => e.getClientRects().length);
              const outside = (text, box) => text.left < box.left || text.right > box.right
                || text.top < box.top || text.bottom > box.bottom;
              const cut = shown.flatMap((svg) => [...svg.querySelectorAll("text")]
                .filter((e) => outside(e.getBoundingClientRect(), svg.getBoundingClientRect()))
                .map((e) => e.textContent));
              const figures = [...document.querySelectorAll("figure")];
              return [[figures.length, shown.length], figures.filter((e) => e.scrollWidth > e.clientWidth).length, cut];
            }"""
        )
        assert figures == [5, 5], "of the two widths of each plot one is shown"
        assert scrolling == 0
        assert cut == []


def test_names_of_boundaries_stay_in_view_while_the_table_of_all_metrics_scrolls(html):
    with opened(500, "light") as page:
        show(page, html)
        region = page.get_by_role("region", name="All metrics")
        name = region.get_by_role("rowheader", name="prefill")
        before = name.bounding_box()
        region.evaluate("(element) => (element.scrollLeft = 300)")
        assert region.evaluate("(element) => element.scrollLeft") == 300
        assert name.bounding_box() == before


def test_a_mark_of_what_failed_is_on_the_line_of_its_name(html):
    with opened(1280, "light") as page:
        show(page, html)
        for name in page.get_by_role("region", name="All metrics").get_by_role("rowheader").all():
            expect(name).to_have_css("white-space", "nowrap")
        assert scrolling_tables(page) == []


def test_a_table_that_is_cut_by_the_screen_has_a_shadow_there_until_its_end_is_in_view(html):
    with opened(500, "light") as page:
        show(page, html)
        region = page.get_by_role("region", name="All metrics")

        def is_plain_at_the_right() -> bool:
            image = Image.open(io.BytesIO(region.screenshot())).convert("RGB")
            return image.getpixel((image.width - 4, image.height - 14)) == (255, 255, 255)

        assert not is_plain_at_the_right()
        region.evaluate("(element) => (element.scrollLeft = element.scrollWidth)")
        assert is_plain_at_the_right()


def test_no_heading_is_the_last_line_of_a_printed_page(html):
    with opened(1280, "light") as page:
        show(page, html)
        page.emulate_media(media="print")
        page.evaluate("document.querySelector('h2 + p').after(document.createElement('p'))")
        for end in ("h2", "h2 + p", "h2 + p + p", "p:has(+ ul)"):
            assert page.locator(end).first.evaluate("(element) => getComputedStyle(element).breakAfter") == "avoid"


def test_no_explanation_is_parted_by_the_end_of_a_printed_page(html):
    with opened(1280, "light") as page:
        show(page, html)
        page.emulate_media(media="print")
        for part in ("dl > dt", "dl > dd", "ol.flow", "li", "tr"):
            expect(page.locator(part).first).to_have_css("break-inside", "avoid")


def test_a_name_of_a_sample_is_on_one_line_and_leaves_the_question_its_place_also_on_paper(html):
    with opened(1280, "light") as page:
        show(page, html)
        name = page.get_by_role("region", name="All samples").get_by_role("rowheader", name="above-below 12")
        assert name.locator("span").evaluate("(element) => element.getClientRects().length") == 1
        page.set_viewport_size({"width": 703, "height": 1000})  # What A4 has between margins of 12 mm.
        page.emulate_media(media="print")
        assert name.locator("span").evaluate("(element) => element.getClientRects().length") == 1
        question = page.get_by_role("region", name="All samples").get_by_role("cell").first.bounding_box()
        assert question is not None
        assert question["width"] > 170


def test_tokens_of_an_answer_are_counted_from_1(report):
    sample = next(each for each in report.samples if each.divergence)
    parted = sample.model_copy(update={"divergence": sample.divergence.model_copy(update={"position": 0})})
    shown = to_html(report.model_copy(update={"samples": (parted,)}))
    assert "differs from token 1 on." in shown
    assert "The first token of an answer is token 1." in shown


def test_tokens_are_counted_for_whom_they_are_of_and_not_as_what_a_share_is_of(report):
    """Of answers of different lengths, the share is of the longer's positions, which are more than the reference's."""
    many = tuple(report.samples[i % 5].model_copy(update={"name": f"sample {i}"}) for i in range(14))
    with opened(1280, "light") as page:
        show(page, to_html(report.model_copy(update={"samples": many})))
        expect(page.locator(".tile", has_text="greedy tokens agree, position by position")).to_be_visible()
        table = page.get_by_role("region", name="All samples")
        expect(table.get_by_role("columnheader", name=f"Tokens of {engine_name(report.reference)}")).to_be_visible()


def test_labels_of_stacked_cells_stay_within_them_and_a_marked_token_on_one_line(html):
    with opened(500, "light") as page:
        show(page, html)
        cell = page.get_by_role("region", name="All samples").locator("td[data-label^=Tokens]").first
        assert cell.evaluate("(cell) => cell.scrollWidth <= cell.clientWidth")
        assert cell.evaluate("(cell) => getComputedStyle(cell, '::before').whiteSpace") == "normal"
        for mark in page.locator("mark").all():
            assert mark.evaluate("(mark) => mark.getClientRects().length") == 1


def test_a_failed_page_says_whose_number_is_which_where_the_error_is_largest(report):
    shown = to_html(report)
    worst = report.boundary(report.first_bad).worst
    with opened(500, "light") as page:
        show(page, shown)
        where = page.get_by_text(f"The largest error is at index {list(worst.index)} of sample {worst.sample}")
        expect(where).to_contain_text(
            f": PyTorch has {distinct(worst.reference, worst.candidate)[0]} there, {report.candidate} "
        )


def test_names_of_rows_do_not_stick_on_paper_where_their_lines_would_vanish(html):
    with opened(1280, "light") as page:
        show(page, html)
        page.emulate_media(media="print")
        expect(page.locator(".dense tbody th").first).to_have_css("position", "static")


def near_limits(report: ParityReport) -> ParityReport:
    """The report with errors of 0.99 to a hundredth of their limits."""

    def near(boundary, part):
        limits = [check.limit for check in boundary.checks if check.metric == "relative_error"]
        metrics = {**boundary.metrics, "relative_error": part * limits[0]} if limits else boundary.metrics
        return boundary.model_copy(update={"metrics": metrics})

    boundaries = [near(each, 0.99 / 1.7**i) for i, each in enumerate(report.boundaries)]
    return report.model_copy(update={"boundaries": tuple(boundaries)})


def passing(report: ParityReport) -> ParityReport:
    """The report with every check passed, whatever was measured."""
    boundaries = [
        each.model_copy(update={"checks": tuple(check.model_copy(update={"passed": True}) for check in each.checks)})
        for each in report.boundaries
    ]
    return report.model_copy(update={"boundaries": tuple(boundaries)})


@pytest.mark.parametrize("width_inches", [WIDE_INCHES, NARROW_INCHES])
def test_a_value_that_passed_does_not_stand_behind_its_limit_where_it_would_read_as_the_limit(report, width_inches):
    svg = errors_by_boundary(near_limits(passing(report)), width_inches)
    assert svg is not None
    with opened(1280, "light") as page:
        show(page, svg)
        behind = page.evaluate(
            """() => {
              const dashed = [...document.querySelectorAll("svg path")].filter((p) => p.style.strokeDasharray);
              const lines = dashed.map((path) => path.getBoundingClientRect());
              return [...document.querySelectorAll("svg text")].filter((text) => {
                const t = text.getBoundingClientRect();
                return lines.some((l) => t.right > l.left && t.top < l.bottom && l.top < t.bottom);
              }).map((text) => text.textContent).concat(lines.length ? [] : ["no limits"]);
            }"""
        )
        assert behind == []


def test_no_line_of_a_grid_crosses_the_legend_of_errors_by_layer(report):
    vision = report.boundary("vision")
    layers = [
        vision.model_copy(update={"name": f"{kind}.{i}", "metrics": {"relative_error": 10.0 ** (i - 6)}})
        for kind in ("vision_block", "decoder_layer")
        for i in range(4)
    ]
    svg = errors_by_layer(report.model_copy(update={"boundaries": tuple(layers)}))
    assert svg is not None
    with opened(1280, "light") as page:
        show(page, svg)
        axes = page.locator("#layers-axes_1").bounding_box()
        names = [page.get_by_text(name, exact=True).bounding_box() for name in ("ViT blocks", "decoder layers")]
        assert axes is not None
        assert all(name is not None and name["y"] > axes["y"] + axes["height"] for name in names)


def test_sentences_of_magnitudes_and_texts_do_not_run_together(report):
    layers = [LayerRange(layer=f"layers.{i}", tensor=f"layers.{i}.out", magnitude=x) for i, x in enumerate((9e4, 5e4))]
    update = {
        "ranges": RangeFacts(dtype="float16", largest=65504.0, layers=tuple(layers)),
        "texts": TextFacts(texts=9, tokens=900, nll=9.31, unigram_nll=4.2, prediction_entropy=2.1, uniform_nll=6.2),
    }
    with opened(500, "light") as page:
        show(page, to_html(report.model_copy(update=update)))
        expect(page.get_by_text("float16 holds up to 65504. 1 of 2 layers leave its range. 1 of 2")).to_be_visible()
        expect(page.get_by_text("✗ fail 9.31 nats per token")).to_be_visible()
    misread = report.model_copy(update={**update, "ranges": None, "first_bad": None})
    assert "The boundaries below do not show this: both sides of each comparison read" in to_html(misread)


def test_names_of_tensors_and_metrics_do_not_break_within_a_word_on_a_narrow_screen(report):
    tensor = "language_model.model.layers.7.mlp.down_proj.output"
    large = RangeFacts(dtype="float16", largest=65504.0, layers=(LayerRange(layer="x", tensor=tensor, magnitude=9e4),))
    checks = (Check(metric="top1_agreement", value=0.5, relation="at least", limit=1, passed=False, reason="so"),)
    bad = [each.model_copy(update={"checks": checks}) for each in report.boundaries if each.name == report.first_bad]
    others = [each for each in report.boundaries if each.name != report.first_bad]
    assert "7.<wbr>mlp." in to_html(report.model_copy(update={"ranges": large}))
    with opened(500, "light") as page:
        show(page, to_html(report.model_copy(update={"boundaries": (*bad, *others)})))
        expect(page.locator(".verdict .whole", has_text="Top-1").first).to_have_css("white-space", "nowrap")


def test_a_token_of_white_space_at_which_answers_part_is_marked(report):
    sample = next(each for each in report.samples if each.divergence)
    parted = sample.model_copy(update={"divergence": sample.divergence.model_copy(update={"candidate_token": " \n"})})
    with opened(1280, "light") as page:
        show(page, to_html(report.model_copy(update={"samples": (parted,)})))
        expect(page.locator("mark", has_text="␣⏎")).to_be_visible()


def test_a_limit_far_below_the_errors_is_within_the_axis(report):
    steps = [step.model_copy(update={"max_abs_error": 30.0 + step.step}) for step in report.decode_steps]
    svg = errors_by_step(report.model_copy(update={"decode_steps": tuple(steps)}))
    assert svg is not None
    with opened(1280, "light") as page:
        show(page, svg)
        ticks = page.locator('[id="steps-matplotlib.axis_2"]').bounding_box()
        limit = page.evaluate(
            """() => {
              const dashed = [...document.querySelectorAll("#steps-axes_1 path")];
              return dashed.filter((path) => path.style.strokeDasharray)[0].getBoundingClientRect().y;
            }"""
        )
        assert ticks is not None
        assert ticks["y"] < limit < ticks["y"] + ticks["height"]


def test_no_value_of_a_plot_is_crossed_by_its_limit(report):
    svg = errors_by_boundary(near_limits(report))
    assert svg is not None
    with opened(1280, "light") as page:
        show(page, svg)
        crossed = page.evaluate(
            """() => {
              const dashed = [...document.querySelectorAll("svg path")].filter((p) => p.style.strokeDasharray);
              const lines = dashed.map((path) => path.getBoundingClientRect());
              return [...document.querySelectorAll("svg text")].filter((text) => {
                const t = text.getBoundingClientRect();
                return lines.some((l) => t.left < l.right && l.left < t.right && t.top < l.bottom && l.top < t.bottom);
              }).map((text) => text.textContent).concat(lines.length ? [] : ["no limits"]);
            }"""
        )
        assert crossed == []


def test_hashes_of_files_with_long_names_are_in_view_on_a_narrow_screen(report):
    name = "graphs/qweight/vision_model.encoder.layers.0.safetensors"
    files = HashedFiles.of({name: FileEntry(sha256="0" * 64, size=331_800)})
    made_by = Provenance(
        model="nano", revision=None, checkpoint=files, bundle=files, command="check", device="cpu", date=None
    )
    with opened(500, "light") as page:
        show(page, to_html(report.model_copy(update={"provenance": made_by})))
        assert set(scrolling_tables(page)) <= {"All metrics"}
        row = page.get_by_role("region", name="Files of the bundle").locator("tbody tr").bounding_box()
        assert row is not None
        assert row["height"] < 120


def test_a_failed_gate_names_an_altered_file_once_among_what_to_check_and_a_passed_one_names_it_too(report):
    files = HashedFiles.of({"graphs/vision.data": FileEntry(sha256="0" * 64, size=9)})
    made_by = Provenance(
        model="nano",
        revision=None,
        checkpoint=files,
        bundle=files,
        altered=("graphs/vision.data",),
        command="check",
        device="cpu",
        date=None,
    )
    failed = report.model_copy(update={"provenance": made_by})
    for each in (failed, failed.model_copy(update={"first_bad": None})):
        assert to_html(each).count("is not as the bundle") == 1
    with opened(500, "light") as page:
        show(page, to_html(failed))
        expect(page.locator(".verdict li").first).to_contain_text("graphs/vision.data")


def test_a_page_of_files_that_were_read_back_says_that_their_own_library_did_not_run(report):
    files = HashedFiles.of({"engines/x/model.safetensors": FileEntry(sha256="0" * 64, size=9)})
    said = "read back and computed in PyTorch, without X"
    made_by = Provenance(
        model="nano",
        revision=None,
        checkpoint=files,
        bundle=files,
        read_back=said,
        command="check",
        device="cpu",
        date=None,
    )
    failed = report.model_copy(update={"provenance": made_by})
    for each in (failed, failed.model_copy(update={"first_bad": None})):
        verdict = to_html(each).partition('<section class="verdict')[2].partition("</section>")[0]
        assert f"What was computed: the files of {report.candidate}, {said}." in verdict
    assert "What was computed" not in to_html(report)


@pytest.mark.parametrize("width", [1280, 500])
def test_heads_of_a_long_table_stay_in_view(report, width):
    """Those of the hashes at the top of the window, those of all metrics, which scroll sideways at 500 px, in their
    box."""
    names = {f"graphs/{i}.onnx": FileEntry(sha256="0" * 64, size=9) for i in range(60)}
    files = HashedFiles.of(names)
    made_by = Provenance(
        model="nano", revision=None, checkpoint=files, bundle=files, command="check", device="cpu", date=None
    )
    vision = report.boundary("vision")
    blocks = [vision.model_copy(update={"name": f"vision_block.{i}"}) for i in range(45)]
    long = report.model_copy(update={"provenance": made_by, "boundaries": (*report.boundaries, *blocks)})
    with opened(width, "light") as page:
        show(page, to_html(long))
        region = page.get_by_role("region", name="Files of the bundle")
        region.get_by_role("row").nth(40).evaluate("(row) => row.scrollIntoView({ block: 'center' })")
        assert region.get_by_role("columnheader").last.bounding_box()["y"] == 0
        metrics = page.get_by_role("region", name="All metrics")
        metrics.get_by_role("row").nth(40).evaluate("(row) => row.scrollIntoView({ block: 'center' })")
        head = metrics.get_by_role("columnheader").first
        assert abs(head.bounding_box()["y"] - metrics.bounding_box()["y"]) <= 1
        metrics.evaluate("(element) => (element.scrollLeft = 300)")
        assert abs(head.bounding_box()["x"] - metrics.bounding_box()["x"]) <= 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # What is shown at the head's place is the head, not what scrolls behind it.
        assert head.evaluate(
            """(head) => { const { x, y, height } = head.getBoundingClientRect();
              return head.contains(document.elementFromPoint(x + 9, y + height / 2)); }"""
        )


@pytest.mark.parametrize("width", [1280, 500])
def test_a_sentence_on_near_ties_leaves_a_page_as_wide_as_its_window_and_reasons_their_room(report, width):
    def tied(boundary):
        checks = [check.model_copy(update={"near_ties": 7, "near_tie": 0.1}) for check in boundary.checks]
        return boundary.model_copy(update={"checks": tuple(checks)})

    shown = to_html(report.model_copy(update={"boundaries": tuple(map(tied, report.boundaries))}))
    with opened(width, "light") as page:
        show(page, shown)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        reason = page.get_by_text("Measured with 7 near ties").first.bounding_box()
        assert reason is not None
        assert reason["width"] > 250


@pytest.mark.parametrize("medium", ["screen", "print"])
def test_a_sentence_on_nan_leaves_reasons_their_room(report, medium):
    said = "698880 NaN or infinite values in the candidate, the first at [0, 0, 0] of sample count 0"
    shown = report.model_copy(
        update={"boundaries": tuple(each.model_copy(update={"problem": said}) for each in report.boundaries)}
    )
    with opened(1280 if medium == "screen" else 703, "light") as page:  # A4 has 703 between margins of 12 mm.
        page.emulate_media(media=medium)
        show(page, to_html(shown))
        table = page.get_by_role("region", name="Boundaries")
        name = table.get_by_role("rowheader").first.bounding_box()
        reason = table.get_by_role("cell").first.bounding_box()
        assert name is not None
        assert reason is not None
        assert reason["width"] > name["width"]


def test_heads_of_tables_are_repeated_on_each_printed_page_and_stand_still_there(html):
    with opened(1280, "light") as page:
        show(page, html)
        page.emulate_media(media="print")
        for head in page.locator("thead").all():
            expect(head).to_have_css("display", "table-header-group")
        for name in page.locator("thead th").all():
            expect(name).to_have_css("position", "static")


def test_what_failed_is_marked_without_a_background_which_paper_may_lack(report):
    failed = {each.name for each in report.boundaries if not each.passed}
    assert failed
    with opened(1280, "light") as page:
        show(page, to_html(report))
        page.emulate_media(media="print")
        metrics = page.get_by_role("region", name="All metrics").get_by_role("rowheader")
        marked = [text.removeprefix("✗ ") for text in metrics.all_inner_texts() if text.startswith("✗ ")]
        assert set(marked) == failed
        rows = page.get_by_role("region", name="Boundaries").locator("tr:has(.bad-text)")
        assert rows.count() == sum(not check.passed for stage in stages(report) for check in stage.checks)
        for row in rows.all():
            width = row.locator("td").first.evaluate("(cell) => parseFloat(getComputedStyle(cell).borderLeftWidth)")
            assert width >= 3


def test_a_page_that_passed_names_another_comparison_that_failed(report):
    passed = report.model_copy(update={"gate": "quantization", "first_bad": None})
    said = "Another comparison of this engine failed:"
    assert said in to_html(passed, (report, passed))
    assert said not in to_html(passed, (passed,))
    assert said not in to_html(report, (report, passed))
