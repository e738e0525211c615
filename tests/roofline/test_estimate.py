"""The roofline by hand: the larger of arithmetic and memory, operator by operator."""

from __future__ import annotations

import pytest

from r1v_export.errors import UsageError
from r1v_export.pages import MadeBy
from r1v_export.roofline.counts import Cost
from r1v_export.roofline.devices import DEVICES, DeviceSpec, device
from r1v_export.roofline.estimate import folded, layer_times, total
from r1v_export.roofline.report import amount, facts, milliseconds, to_html
from tests.browser import VIEWS, Theme, faint_texts, needs_chromium, opened, scrolling_tables, show

GPU = DeviceSpec("GPU", 90, {"float16": 1.0, "float8e4m3fn": 2.0}, 1, 1.0, "made up")
"""1e12 operations and 1e9 bytes per second."""


def cost(module: str, flops: int, weight_bytes: int = 0, arithmetic: str = "float16") -> Cost:
    return Cost(module, arithmetic, flops, weight_bytes, 0, 0)


def test_a_layer_takes_the_sum_of_what_bounds_each_operator() -> None:
    costs = [cost("model.layers.0.a", 3 * 10**12, 10**9), cost("model.layers.0.b", 10**12, 2 * 10**9)]
    (row,) = layer_times(costs, GPU)
    assert (row.compute_s, row.memory_s, row.seconds) == pytest.approx((4, 3, 5))
    assert row.bound == "compute"


def test_eight_bit_products_run_at_their_own_rate_and_unknown_types_at_that_of_16_bits() -> None:
    rows = layer_times([cost("a", 2 * 10**12, arithmetic="float8e4m3fn"), cost("b", 10**12, arithmetic="int8")], GPU)
    assert [row.seconds for row in rows] == pytest.approx([1, 1])


def test_equal_layers_fold_into_one_row_and_the_total_counts_them_all() -> None:
    rows = layer_times([cost(f"model.layers.{index}.mlp", 10**12) for index in range(4)] + [cost("head", 7)], GPU)
    assert [(row.layer, count) for row, count in folded(rows)] == [("model.layers.0", 4), ("head", 1)]
    assert total(rows).flops == 4 * 10**12 + 7


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_says_where_its_figures_are_from_and_eight_bits_are_no_slower_than_sixteen(name: str) -> None:
    spec = device(name.lower())
    assert spec.source
    assert spec.flops_per_s("int8") >= spec.flops_per_s("float16") >= spec.flops_per_s("float32")
    assert ("float8e4m3fn" in spec.tflops) == (spec.compute_capability >= 89)


def test_an_unknown_device_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UsageError, match="H100"):
        device("H999")


@pytest.mark.parametrize(
    ("name", "nearest"), [("H10", "H100"), ("rtx4090", "RTX 4090"), ("RTX PRO 600", "RTX PRO 6000")]
)
def test_a_name_that_is_nearly_a_device_s_is_answered_with_it(name: str, nearest: str) -> None:
    with pytest.raises(UsageError) as caught:
        device(name)
    assert caught.value.fix == f"did you mean {nearest}?"


def test_the_page_names_the_devices_and_escapes_the_model() -> None:
    workloads = {"decode": [cost("model.layers.0.mlp", 10**12, 10**9)]}
    made_by = MadeBy("r1v-export inspect <bundle>", "2026-01-01T00:00:00+00:00", "1.2.3")
    about = {"Model": "<model>", "Graphs": "SHA-256 0a1b", "Built by": "r1v-export build"}
    about["Built with"] = "r1v-export 0.1.0"
    page = to_html(about, made_by, workloads, list(DEVICES.values()))
    assert "<model>" not in page
    assert all(name in page for name in DEVICES)
    for text in (
        "&lt;model&gt;",
        "SHA-256 <code>0a1b</code>",
        "model.<wbr>layers.<wbr>0",
        '<code><span class="whole">r1v-export</span> build</code>',
        '<dd><span class="whole">r1v-export</span> 0.1.0</dd>',
        "The numbers of layers that are alike are those of each of them.",
        "inspect &lt;bundle&gt;",
        "2026-01-01 00:00:00 UTC",
        "r1v-export 1.2.3",
    ):
        assert text in page
    assert facts(workloads, GPU)["workloads"]["decode"]["total"]["seconds"] == pytest.approx(1)


@needs_chromium
@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_no_table_is_wider_than_a_narrow_screen(width: int, theme: Theme) -> None:
    layer = "language_model.model.layers.0"
    costs = [cost(f"{layer}.mlp", 10**12, 10**9), cost(f"{layer}.attn", 10**12, 10**9, "float8e4m3fn")]
    steps = ("vision, 5 tiles", "prefill, 4096 tokens", "decode, one token at a context of 4096")
    made_by = MadeBy("r1v-export inspect", "2026-01-01", "1.2.3")
    html = to_html({"Model": "nano"}, made_by, dict.fromkeys(steps, costs), list(DEVICES.values()))
    with opened(width, theme) as page:
        show(page, html)
        assert scrolling_tables(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert faint_texts(page) == []


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (1500, "1.5 k"), (2.5e12, "2.5 T"), (3e15, "3 P")])
def test_amounts_have_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.137e-6, "0.00414"), (5.036e-8, "0.0000504"), (0.0, "0"), (0.561, "561"), (23.34, "23340")]
)
def test_times_have_no_exponent_that_a_reader_must_resolve(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text
