from __future__ import annotations

import pytest

from r1v_export.targets.onnxruntime.head_file import group_size, head_bytes, scales_at


@pytest.mark.parametrize(("hidden", "group"), [(5120, 128), (896, 128), (192, 64), (96, 32), (100, None)])
def test_groups_are_the_largest_that_divide_the_inputs(hidden, group):
    assert group_size(hidden) == group


def test_scales_begin_on_a_page_behind_the_values():
    assert scales_at(128, 1000) == 32 * 4096
    assert head_bytes(128, 1000) == 32 * 4096 + 4000
    assert head_bytes(100, 1000) == 0
