"""Pages of mapped files, let go when OpenVINO has packed from them."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from tests.targets.openvino.conftest import NEEDS_OPENVINO

pytestmark = [
    NEEDS_OPENVINO,
    pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages are let go on Linux"),
]


class Mapped:
    """4 MiB in a file, mapped."""

    def __init__(self, path: Path) -> None:
        from r1v_export.targets.openvino.runtime.model import _mapped

        self.path, self.content = path, np.arange(1 << 22, dtype=np.uint8)
        path.write_bytes(self.content.tobytes())
        self.array = _mapped(path)

    def resident_bytes(self) -> int:
        lines, size = Path("/proc/self/smaps").read_text().splitlines(), 0
        inside = False
        for line in lines:
            if "-" in line.split(" ")[0] and not line.split(" ")[0].endswith(":"):
                inside = line.endswith(str(self.path))
            elif inside and line.startswith("Rss:"):
                size += int(line.split()[1]) << 10
        return size

    def read(self) -> None:
        np.testing.assert_array_equal(self.array, self.content)


@pytest.fixture
def mapped(tmp_path) -> Mapped:
    return Mapped(tmp_path / "weights")


def test_pages_that_are_let_go_come_back_from_the_file(mapped):
    from r1v_export.targets.openvino.runtime.held_weights import forget_pages

    mapped.read()
    assert mapped.resident_bytes() == len(mapped.content)
    forget_pages(mapped.array[100:200])
    assert mapped.resident_bytes() == 0
    mapped.read()


def test_pages_go_while_the_first_run_reads_them_and_behind_it_and_later_ones_stay(mapped):
    from r1v_export.targets.openvino.runtime import held_weights

    held = held_weights.HeldWeights([mapped.array[:100].reshape(10, 10), mapped.array, np.zeros(3)])
    with held.packing():
        mapped.read()
        for _ in range(200):
            if not mapped.resident_bytes():
                break
            held_weights.threading.Event().wait(0.02)
        assert mapped.resident_bytes() == 0
        mapped.read()
    assert mapped.resident_bytes() == 0
    with held.packing():
        mapped.read()
    assert mapped.resident_bytes() == len(mapped.content)


def test_a_first_run_that_fails_is_not_the_last_first_one(mapped):
    from r1v_export.targets.openvino.runtime.held_weights import HeldWeights

    held = HeldWeights([mapped.array])
    with pytest.raises(ValueError, match="wrong"), held.packing():
        raise ValueError("wrong")
    with held.packing():
        mapped.read()
    assert mapped.resident_bytes() == 0
