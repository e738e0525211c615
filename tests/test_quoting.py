"""Texts from outside, shown to people: what Unicode calls controls is never passed on."""

from __future__ import annotations

import sys
import unicodedata

from r1v_export.quoting import did_you_mean, printable

BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
MARKS = {"LEFT-TO-RIGHT MARK", "RIGHT-TO-LEFT MARK", "ARABIC LETTER MARK"}


def obeyed(char: str) -> bool:
    """Whether a terminal or page acts on a character instead of showing it, by Unicode's own tables."""
    is_mark = unicodedata.bidirectional(char) in BIDI_CONTROLS or unicodedata.name(char, "") in MARKS
    return is_mark or unicodedata.category(char) == "Cc"


def test_no_character_that_is_obeyed_is_passed_on_but_line_ends_and_tabs_and_all_others_are() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    assert {char for char in characters if printable(char) != char} == {c for c in characters if obeyed(c)} - {
        "\n",
        "\t",
    }


def test_a_control_character_is_shown_as_its_symbol() -> None:
    assert printable("a\x00b\x7f\n\tc\u202ed") == "a␀b␡\n\tc\N{REPLACEMENT CHARACTER}d"


def test_the_nearest_known_name_is_asked_about_and_no_distant_one() -> None:
    assert did_you_mean("onxruntime", ("onnxruntime", "gguf")) == "did you mean onnxruntime?"
    assert did_you_mean("h10", ("RTX 4090", "H100")) == "did you mean H100?"
    assert did_you_mean("", ("onnxruntime", "gguf")) is None
