"""benchmarks/whole_answers.py: what it makes of readings, and when it begins no further turn."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.documents import PROJECT


@pytest.fixture(scope="module")
def whole_answers() -> Any:
    """The script, which imports its neighbors."""
    path = PROJECT / "benchmarks/whole_answers.py"
    before = [*sys.path]
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("whole_answers", path)
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules["whole_answers"] = module  # where dataclasses look for the names of their fields' types
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def reading(first_s: float, last_s: float, peak_bytes: float) -> dict[str, float]:
    return {"first_s": first_s, "last_s": last_s, "peak_bytes": peak_bytes, "prompt_tokens": 461}


def test_a_peer_that_takes_longer_has_a_ratio_above_one(whole_answers: Any) -> None:
    ours, peer = whole_answers.OURS[0], "llama.cpp Q4_0"
    rows = {ours: [reading(1, 2, 1e9), reading(3, 4, 2e9), reading(2, 3, 1e9)], peer: [reading(4, 9, 5e8)]}
    found = whole_answers.summary(rows)
    assert found["ratios"] == {f"{peer} / {ours}": {"first_s": 2.0, "last_s": 3.0}}
    assert (found["systems"][ours]["first_s"], found["systems"][ours]["peak_bytes"]) == (2, 2e9)
    lines = whole_answers.table({1: found, 4: found}, ours).splitlines()
    assert lines[0] == "|  | 1 tile: first, last token | 4 tiles: first, last token | peak memory, GB: 1, 4 |"
    assert f"| {peer} | 2.00, 3.00 | 2.00, 3.00 | 0.5, 0.5 |" in lines
    assert f"| {ours}, seconds | 2.00 s, 3.00 s | 2.00 s, 3.00 s |  |" in lines
    assert len({line.count("|") for line in lines}) == 1


def test_a_system_that_was_asked_something_else_is_named(whole_answers: Any) -> None:
    ours, peer = whole_answers.OURS[0], "llama.cpp Q4_0"
    rows = {ours: [reading(1, 2, 1e9)], peer: [reading(1, 2, 1e9) | {"prompt_tokens": 460}]}
    assert whole_answers.other_prompts({1: whole_answers.summary({ours: rows[ours]})}, ours) == []
    (line,) = whole_answers.other_prompts({4: whole_answers.summary(rows)}, ours)
    assert line == f"4 tiles: {peer} has 460 prompt tokens, {ours} 461"


def test_no_turn_is_begun_that_would_end_late(
    whole_answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Slow:
        name = whole_answers.OURS[0]

        def running(self, *_: object) -> AbstractContextManager[None]:
            return nullcontext()

        def ask(self, job: dict[str, int]) -> dict[str, float]:
            asked.append(job["tiles"])
            return reading(1, 2, 1e9)

    seconds = SimpleNamespace(monotonic=lambda: float(sum(60 if tiles == 13 else 1 for tiles in asked)))
    monkeypatch.setattr(whole_answers, "time", seconds)
    monkeypatch.setattr(whole_answers, "job_of", lambda work, tiles, turn, new_tokens: {"tiles": tiles})
    clock = whole_answers.Clock(limit_s=100.0)
    clock.began = 0.0
    *_, last = whole_answers.measure([Slow()], {1: 3, 13: 3}, 8, clock, 2, tmp_path)
    assert asked == [1, 13, 1, 1], "a second turn of 13 tiles would end after 122 seconds"
    assert {tiles: found["systems"][Slow.name]["turns"] for tiles, found in last.items()} == {1: 3, 13: 1}
