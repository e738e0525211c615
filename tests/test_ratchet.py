"""benchmarks/ratchet.py: how what is measured is compared with what is committed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.documents import PROJECT

_SPEC = importlib.util.spec_from_file_location("ratchet", PROJECT / "benchmarks/ratchet.py")
assert _SPEC is not None
assert _SPEC.loader is not None
ratchet = importlib.util.module_from_spec(_SPEC)
sys.modules["ratchet"] = ratchet  # where dataclasses look for the names of their fields' types
_SPEC.loader.exec_module(ratchet)
Measure, compare = ratchet.Measure, ratchet.compare


def verdicts(committed: dict[str, object], measured: dict[str, object]) -> dict[str, str]:
    return {row.name: row.verdict for row in compare(committed, measured)}


@pytest.mark.parametrize(
    ("value", "verdict"), [(1010, "ok"), (1011, "slower"), (1000, "ok"), (990, "ok"), (989, "faster")]
)
def test_a_count_may_rise_by_a_hundredth_and_no_more(value: int, verdict: str) -> None:
    assert verdicts({"a": Measure("instructions", 1000, 0)}, {"a": Measure("instructions", value, 0)}) == {"a": verdict}


def test_the_bound_follows_from_how_repeatable_the_committed_reading_was() -> None:
    committed = {"a": Measure("instructions", 1000, 0.02)}
    assert committed["a"].bound == 0.06
    assert verdicts(committed, {"a": Measure("instructions", 1059, 0)}) == {"a": "ok"}
    assert verdicts(committed, {"a": Measure("instructions", 1061, 0)}) == {"a": "slower"}
    # A noisy reading of today does not excuse itself.
    exact, noisy = Measure("instructions", 1000, 0), Measure("instructions", 1059, 0.02)
    assert verdicts({"a": exact}, {"a": noisy}) == {"a": "slower"}


def test_a_path_that_is_no_longer_measured_fails_and_a_new_one_does_not() -> None:
    one = Measure("ratio", 1.0, 0)
    gone, new = compare({"gone": one}, {}), compare({}, {"new": one})
    assert [row.verdict for row in gone + new] == ["missing", "new"]
    assert ratchet.failed(gone)
    assert not ratchet.failed(new)


def test_kinds_that_are_not_asked_for_are_not_missing() -> None:
    committed = {"a": Measure("instructions", 1, 0), "b": Measure("ratio", 1, 0)}
    rows = compare(committed, {"a": Measure("instructions", 1, 0)}, ("instructions",))
    assert [row.name for row in rows] == ["a"]


def test_a_path_that_is_measured_otherwise_is_an_error() -> None:
    with pytest.raises(ValueError, match="a: ratio measured, instructions committed"):
        compare({"a": Measure("instructions", 1000, 0)}, {"a": Measure("ratio", 1, 0)})


def test_repeats_become_their_median_and_spread() -> None:
    assert ratchet.repeated("ratio", [1.1, 1.0, 1.05]) == Measure("ratio", 1.05, 0.1)


def test_measures_are_read_as_they_were_written(tmp_path: Path) -> None:
    measures = {"a": Measure("instructions", 1000, 0.001), "b": Measure("ratio", 1.25, 0.02)}
    ratchet.write(tmp_path / "ratchet.json", measures, {"python": "3.11.2"})
    assert ratchet.read(tmp_path / "ratchet.json") == (measures, {"python": "3.11.2"})
    assert json.loads((tmp_path / "ratchet.json").read_text())["measures"]["b"]["bound"] == 0.1


def test_the_table_says_what_got_slower_and_by_how_much() -> None:
    rows = compare({"decode": Measure("instructions", 1_000_000, 0)}, {"decode": Measure("instructions", 1_250_000, 0)})
    assert ratchet.failed(rows)
    (line,) = [line for line in ratchet.table(rows).splitlines() if line.startswith("decode")]
    assert line.split() == ["decode", "instructions", "1,000,000", "1,250,000", "1.250", "1.0%", "slower"]


def test_the_total_of_a_count_is_read_and_its_absence_is_an_error() -> None:
    assert ratchet.parse_total("events: Ir\nfn=(1)\n5 3\ntotals: 123456\n") == 123456
    with pytest.raises(ValueError, match="mark never reached"):
        ratchet.parse_total("events: Ir\n")


def test_measured_processes_keep_the_bytecode_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("OTHER", "kept")
    environment = ratchet.environment(threads=3)
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert (environment["OTHER"], environment["OMP_NUM_THREADS"]) == ("kept", "3")


def test_every_committed_path_is_one_that_is_measured() -> None:
    committed, tools = ratchet.read(ratchet.COMMITTED)
    counted = [name for names in ratchet.COUNTED.values() for name in names]
    assert (
        {"decode-fp32", "decode-int4", "help-imports"} <= set(committed) <= {*counted, "help-imports", *ratchet.PAIRED}
    )
    assert {"python", "valgrind", "onnxruntime"} <= set(tools)


def test_a_checkout_that_is_no_slower_passes_and_one_that_is_slower_does_not(monkeypatch, tmp_path) -> None:
    from click.testing import CliRunner

    committed = tmp_path / "ratchet.json"
    ratchet.write(committed, {"open": Measure("instructions", 1000, 0)}, {})
    monkeypatch.setattr(ratchet.shutil, "which", lambda name: name)
    monkeypatch.setattr(ratchet, "build_bundles", lambda work: None)
    monkeypatch.setattr(ratchet, "tool_versions", lambda: {})
    for value, code in ((1000, 0), (1100, 1)):
        monkeypatch.setattr(ratchet, "measure", lambda *_, value=value: {"open": Measure("instructions", value, 0)})
        command = ["--only", "instructions", "--committed", str(committed), "--work", str(tmp_path)]
        assert CliRunner().invoke(ratchet.main, command).exit_code == code
