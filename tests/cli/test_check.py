"""What `check` prints, on terminals of any width."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.cli import main
from r1v_export.cli.check import _print
from r1v_export.parity.rounded_inputs import RoundedInputs
from r1v_export.parity.schema import BoundaryResult, BundleFacts, Check, ParityReport, SampleResult


def boundary(name: str, *checks: Check) -> BoundaryResult:
    return BoundaryResult(name=name, compared="", metrics={}, checks=checks)


def at_most(metric: str, value: float, limit: float) -> Check:
    return Check(metric=metric, value=value, relation="at most", limit=limit, passed=value <= limit, reason="")


def bundle(name: str) -> BundleFacts:
    facts = {"precision": "int4", "target": "onnxruntime", "size_bytes": 9_400_000, "mean_kl": 2.42e-4}
    return BundleFacts(name=name, top1_agreement=0.9876, correct=31, scored=32, **facts)


def report(mean_kl: float) -> ParityReport:
    """A report with every kind of row, and with sentences below the table."""
    near = {"relation": "at least", "limit": 0.98, "passed": True, "reason": "", "near_ties": 2, "near_tie": 0.05}
    choices = Check(metric="top1_agreement", value=0.99, **near)
    embeds, kl = at_most("max_relative_error", 0.0, 0.004), at_most("mean_kl", mean_kl, 0.005)
    boundaries = boundary("embeds", embeds), boundary("prefill", kl, choices), boundary("end_to_end")
    return ParityReport(
        reference="pytorch",
        candidate="onnxruntime",
        precision="int4",
        gate="arithmetic",
        max_new_tokens=96,
        first_bad=None if kl.passed else "prefill",
        causes=(),
        boundaries=boundaries,
        decode_steps=(),
        samples=(),
        environment={},
        rounded_inputs=RoundedInputs(mean_kl=1.1e-6, top1_agreement=1.0),
        bundles=(bundle("int4"), bundle("mixed-precision-of-twenty-gigabytes")),
    )


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("mean_kl", [1.86e-15, 0.00789])
def test_no_line_is_wider_than_the_terminal(
    columns: int, mean_kl: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    _print(report(mean_kl))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    words = " ".join(text.split())
    assert "The engine computes what PyTorch computes (onnxruntime, int4): " in words
    for part in ("not gated", "nats of mean KL", "near ties counted as agreement", "mixed-precision-of-twenty"):
        assert part in words


@pytest.mark.parametrize(("longest", "said"), [(96, "of 2"), (8, "of 2, 1 cut off")])
def test_answers_that_were_cut_off_are_not_just_called_wrong(
    longest: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [
        SampleResult(name="a", question="?", reference="", tokens=n, reference_correct=n < 8, candidate_correct=n < 8)
        for n in (4, 8)
    ]
    _print(report(1e-15).model_copy(update={"samples": tuple(answers), "max_new_tokens": longest}))
    lines = capsys.readouterr().out.splitlines()
    assert f"correct answers: onnxruntime 1, pytorch 1, {said}" in lines


@pytest.mark.parametrize("columns", ["60", "80"])
def test_a_boundary_that_passed_is_one_line_of_sixty_columns(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    _print(report(1.86e-15))
    lines = capsys.readouterr().out.splitlines()
    assert "embeds      max_relative_error         0  at most 0.004  ok" in lines
    assert "end_to_end  not gated" in lines


def test_values_and_limits_read_as_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """0.99951 was shown as 1, and shares as no percentages."""
    least = {"relation": "at least", "passed": True, "reason": ""}
    cosine = Check(metric="min_row_cosine", value=0.99951, limit=0.98, **least)
    choices = Check(metric="top1_agreement", value=0.99996, limit=0.97, **least)
    failed = at_most("relative_error", 0.030001, 0.03)
    boundaries = boundary("vision", cosine), boundary("decode", choices), boundary("projector", failed)
    _print(report(1e-15).model_copy(update={"boundaries": boundaries}))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["vision", "min_row_cosine", "0.999510", "at", "least", "0.98", "ok"] in rows
    assert ["decode", "top1_agreement", "99.99", "%", "at", "least", "97", "%", "ok"] in rows
    assert ["projector", "relative_error", "0.030001", "at", "most", "0.03", "FAIL"] in rows


def test_nearly_all_choices_of_a_bundle_are_not_said_to_be_all(capsys: pytest.CaptureFixture[str]) -> None:
    shares = [bundle(name).model_copy(update={"top1_agreement": each}) for name, each in (("a", 0.99996), ("b", 1.0))]
    _print(report(1e-15).model_copy(update={"bundles": tuple(shares)}))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[5:7] for line in lines if line.startswith(("a ", "b "))] == [["99.99", "%"], ["100", "%"]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--question", "Hi"], "no effect without --image.\n  found:    --question\n  fix:      add --image FILE"),
        (["--image", "a.png", "--questions", "2"], "found:    1 image and --questions 2\n  fix:      omit --questions"),
    ],
)
def test_what_would_have_no_effect_on_what_is_asked_is_refused(
    options: list[str], said: str, nano_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["check", str(nano_bundle), *options]) == 2
    assert said in capsys.readouterr().err
