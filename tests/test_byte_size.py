"""Numbers of bytes as users type them."""

from __future__ import annotations

import pytest

from r1v_export.byte_size import parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 4 << 30), ("20GB", 20 * 10**9), ("1.5 kB", 1500), ("512", 512), ("0", 0), (" 3 MiB ", 3 << 20)],
)
def test_a_number_with_a_unit(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "4 gigabytes", "-1GB", "4GB!", "4gb", "1e9"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a number of bytes"):
        parse_size(text)
