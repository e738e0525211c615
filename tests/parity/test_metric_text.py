"""Metrics as people read them."""

from __future__ import annotations

import math

import pytest

from r1v_export.parity.metric_text import distinct, distinct_shares, limit_text, magnitude, metric_text, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.012, "0.0120"),
        (0.0119, "0.0119"),
        (2e-11, "2.00e-11"),
        (51.0, "51.0"),
        (122.4, "122"),
        (65504.0, "6.55e+04"),
        (0.0, "0"),
        (-0.5, "-0.500"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_have_three_digits_also_where_the_last_are_zeros(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("min_row_cosine", 1.0, "1.000000"),
        ("min_row_cosine", 1 - 1e-9, "1.000000"),
        ("min_row_cosine", 0.99951, "0.999510"),
        ("snr_db", 51.02, "51.0"),
        ("snr_db", 122.4, "122.4"),
        ("snr_db", math.inf, "∞"),
        ("top1_agreement", 0.99996, "99.99 %"),
        ("mean_kl", 2.1e-12, "2.10e-12"),
    ],
)
def test_the_values_of_a_column_have_equal_decimals(metric, value, text):
    assert metric_text(value, metric) == text


@pytest.mark.parametrize(
    ("metric", "value", "limit", "text"),
    [
        ("relative_error", 0.0300001, 0.03, "0.0300001"),
        ("relative_error", 0.03, 0.03, "0.0300"),
        ("relative_error", 0.0299999, 0.03, "0.0299999"),
        ("min_row_cosine", 0.97999999, 0.98, "0.97999999"),
        ("max_abs_error", 1e-300, 0.0, "1.00e-300"),
        ("relative_error", math.inf, 0.03, "∞"),
        ("top1_agreement", 0.979999, 0.98, "97.99 %"),
    ],
)
def test_a_value_beyond_its_limit_never_reads_as_the_limit(metric, value, limit, text):
    assert metric_text(value, metric, limit) == text
    assert text != limit_text(limit, metric)


def test_magnitudes_read_like_the_largest_number_of_float16() -> None:
    assert [magnitude(value) for value in (0.5, 400.0, 1234.5, 9e4, 3e38)] == [
        "0.500",
        "400",
        "1234",
        "90000",
        "3.00e+38",
    ]


def test_limits_are_as_in_the_table_of_tolerances() -> None:
    assert (limit_text(0.03, "relative_error"), limit_text(0.98, "top1_agreement")) == ("0.03", "98 %")


def test_numbers_that_differ_have_the_digits_that_show_it() -> None:
    assert distinct(0.5, 0.25) == ("0.500", "0.250")
    assert distinct(-7.7512, -7.7511) == ("-7.7512", "-7.7511")
    assert distinct(0.1, 0.1) == ("0.100", "0.100")
    assert distinct_shares(0.999914, 0.999957) == ("99.991 %", "99.995 %")
