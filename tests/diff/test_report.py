from __future__ import annotations

import pytest

from r1v_export.diff.compare import BundleDiff, FileDifferences, Row
from r1v_export.diff.report import label, to_html, values
from r1v_export.pages import MadeBy
from tests.browser import VIEWS, faint_texts, needs_chromium, opened, scrolling_tables, show


def test_the_page_has_both_values_and_says_how_it_was_made() -> None:
    tables = {"source": (Row("sha256 of <file>", "0a", "0b"), Row("revision", "main", "main"))}
    files = FileDifferences(equal=2, differing=("graphs/embed.onnx",), first_only=(), second_only=())
    made_by = MadeBy("r1v-export diff <one> two", "2026-01-01T00:00:00+00:00", "1.2.3")
    page = to_html(BundleDiff("<one>", "two", tables, files, None), made_by)
    assert "<one>" not in page
    assert "<file>" not in page
    for text in (
        "0a",
        "0b",
        "1 row is equal",
        "graphs/<wbr>embed.<wbr>onnx",
        "</span> diff &lt;one&gt; two",
        "2026-01-01 00:00:00 UTC",
    ):
        assert text in page


def test_metrics_have_their_labels_and_kinds_of_files_that_are_not_there_are_not_counted() -> None:
    share = Row("onnxruntime, arithmetic: prefill top1_agreement", 0.99996, 1.0)
    rows = (Row("onnxruntime, arithmetic: prefill mean_kl", 0.1, 0.2), Row("x: gate", "passed", "failed"), share)
    tables = {"parity": rows, "settings": (Row("link_weights", False, True),)}
    files = FileDifferences(equal=2, differing=("a",), first_only=("b", "c"), second_only=())
    page = to_html(BundleDiff("one", "two", tables, files, None), MadeBy("r1v-export diff", "2026-01-01", "1.2.3"))
    assert "onnxruntime, arithmetic: prefill mean KL (nats)" in page
    assert "x: gate" in page
    for text in ("99.99 %", "100 %", "3 rows differ:", "against the original model", ">false<", ">true<"):
        assert text in page
    assert "Files: 1 differing, 2 equal, 2 in the first alone." in page


def test_gates_of_pairs_are_explained_where_a_bundle_has_them() -> None:
    rows = tuple(Row(f"one with {gate} by two, {gate}: decode mean_kl", 0.1, 0.1) for gate in ("images", "decoder"))
    files = FileDifferences(equal=2, differing=("a",), first_only=(), second_only=())
    made_by = MadeBy("r1v-export diff", "2026-01-01", "1.2.3")
    of_images, of_decoder = (
        f"{gate}: as arithmetic, with {what}."
        for gate, what in (("Images", "images encoded apart from it"), ("Decoder", "answers decoded by another engine"))
    )
    both, neither = (to_html(BundleDiff("one", "two", {"parity": shown}, files, None), made_by) for shown in (rows, ()))
    assert of_images in both
    assert of_decoder in both
    assert of_images not in neither
    assert of_decoder not in neither


def test_equal_manifests_are_not_said_to_show_what_the_files_are() -> None:
    files = FileDifferences(equal=2, differing=(), first_only=(), second_only=())
    made_by = MadeBy("r1v-export diff", "2026-01-01", "1.2.3")
    assert '<code class="whole">r1v-export verify</code> finds out' in to_html(
        BundleDiff("one", "two", {}, files, None), made_by
    )


def test_rows_of_whole_answers_name_their_metric_once() -> None:
    assert label("onnxruntime, arithmetic: token_agreement") == "onnxruntime, arithmetic: token agreement"
    assert label("onnxruntime, arithmetic: sequence_agreement") == "onnxruntime, arithmetic: identical sequences"


@pytest.mark.parametrize(
    ("title", "row", "expected"),
    [
        ("parity", Row("prefill max_kl", 3.2411e-11, 3.2399e-11), ("3.241e-11", "3.240e-11")),
        ("parity", Row("prefill mean_kl", 0.1, 0.2), ("0.100", "0.200")),
        ("parity", Row("decode mean_kl", 0.1, 0.1 + 2**-56), ("0.10000000000000001", "0.10000000000000002")),
        ("parity", Row("decode top1_agreement", 0.999914, 0.999957), ("99.991 %", "99.995 %")),
        ("parity", Row("decode top1_agreement", 0.5, 0.5), ("50 %", "50 %")),
        ("sizes", Row("documents", 48_910, 48_890), ("48910 B", "48890 B")),
        ("sizes", Row("documents", 48_900, 48_900), ("48.9 kB", "48.9 kB")),
        ("settings", Row("revision", None, "main"), ("none", "main")),
    ],
)
def test_values_that_differ_have_the_digits_that_tell_them_apart(title, row, expected) -> None:
    assert values(row, title) == expected


def test_rows_that_differ_are_marked_by_a_sign_which_paper_shows_too() -> None:
    rows = (Row("precision", "fp8", "int4"), Row("device", "cpu", "cpu"))
    files = FileDifferences(equal=2, differing=("a",), first_only=(), second_only=())
    made_by = MadeBy("r1v-export diff", "2026-01-01", "1.2.3")
    page = to_html(BundleDiff("one", "two", {"settings": rows}, files, None), made_by)
    assert '<th scope="row">≠ precision</th>' in page
    assert '<th scope="row">device</th>' in page
    assert ">Settings: what differs</th>" in page
    assert ">Settings: what is equal</th>" in page


@needs_chromium
@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_both_columns_are_in_view_on_a_narrow_screen_too(width, theme) -> None:
    rows = (Row("targets.onnxruntime.int4_inputs", "exact", "int8"), Row("sha256 of config.json", "0" * 64, "0" * 64))
    files = FileDifferences(equal=2, differing=("a",), first_only=(), second_only=())
    made_by = MadeBy("r1v-export diff", "2026-01-01", "1.2.3")
    html = to_html(BundleDiff("/srv/" + "a" * 60, "/srv/" + "b" * 60, {"settings": rows}, files, None), made_by)
    with opened(width, theme) as page:
        show(page, html)
        assert scrolling_tables(page) == []
        assert faint_texts(page) == []
        regions = page.get_by_role("region").evaluate_all("(found) => found.map((e) => e.getAttribute('aria-label'))")
        assert len(set(regions)) == len(regions) == 2
