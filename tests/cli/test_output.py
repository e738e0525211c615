"""What commands print."""

from __future__ import annotations

from r1v_export.cli.output import table


def test_columns_line_up_and_numbers_go_to_the_right() -> None:
    assert table([("a", 1), ("long", 22)], ("name", "count")) == "name  count\na         1\nlong     22"


def test_no_line_ends_in_spaces() -> None:
    assert table([("a", "x"), ("b", "")]) == "a  x\nb"
