from __future__ import annotations

from r1v_export.pages import breakable, command, unbroken


def test_a_name_may_break_behind_its_separators_and_is_never_markup() -> None:
    assert breakable("model.layers.0") == "model.<wbr>layers.<wbr>0"
    assert breakable("/a/lm_head") == "/<wbr>a/<wbr>lm_<wbr>head"
    assert breakable("<b>&\x1b") == "&lt;b&gt;&amp;␛"


def test_no_line_break_parts_a_number_at_its_minus_and_a_sentence_is_never_markup() -> None:
    assert unbroken("7e-5 after a <b>, 1.5e-3 of r1v-nano.") == (
        '<span class="whole">7e-5</span> after a &lt;b&gt;, '
        '<span class="whole">1.5e-3</span> of <span class="whole">r1v-nano</span>.'
    )


def test_no_line_break_parts_an_option_at_its_hyphens_and_a_command_is_never_markup() -> None:
    assert command("r1v-export diff --report <b>") == (
        '<span class="whole">r1v-export</span> diff <span class="whole">--report</span> &lt;b&gt;'
    )
    assert command(f"--{'a' * 40}") == f"--{'a' * 40}", "wider than a column"
