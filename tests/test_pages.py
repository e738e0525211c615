from __future__ import annotations

from r1v_export.pages import breakable


def test_a_name_may_break_behind_its_separators_and_is_never_markup() -> None:
    assert breakable("model.layers.0") == "model.<wbr>layers.<wbr>0"
    assert breakable("/a/lm_head") == "/<wbr>a/<wbr>lm_<wbr>head"
    assert breakable("<b>&\x1b") == "&lt;b&gt;&amp;␛"
