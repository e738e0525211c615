"""Numbers of bytes as users type them."""

from __future__ import annotations

import pytest

from r1v_export.byte_size import parse_size
from r1v_export.strict import SettingError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 4 << 30), ("20GB", 20 * 10**9), ("1.5 kB", 1500), ("512B", 512), ("0B", 0), (" 3 MiB ", 3 << 20)],
)
def test_a_number_with_a_unit(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "4 gigabytes", "-1GB", "4GB!", "4gb", "1e9B"])
def test_anything_else_is_refused_with_the_units_that_there_are(text: str) -> None:
    with pytest.raises(SettingError, match="not a number of bytes") as caught:
        parse_size(text)
    assert "kB, MB, GB" in str(caught.value.expected)
    assert "4GiB" in caught.value.fix


@pytest.mark.parametrize(("text", "meant"), [("4", "4GB"), ("0.5", "0.5GB"), ("2000000", "2000000B")])
def test_a_number_without_a_unit_is_refused_with_what_was_probably_meant(text: str, meant: str) -> None:
    with pytest.raises(SettingError, match="has no unit") as caught:
        parse_size(text)
    assert caught.value.fix.startswith(f"write {meant} for ")
