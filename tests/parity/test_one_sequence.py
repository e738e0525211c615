"""What an engine has for one sequence is compared by itself: few numbers among many others would hide in a mean."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from r1v_export.contract import Decoder
from r1v_export.parity import CheckOptions, Endpoint, ParitySample, check, comparison, one_sequence
from r1v_export.parity.boundary_statistics import BoundaryStatistics

OPTIONS = CheckOptions("fp32", max_new_tokens=6, batch_size=2)


@pytest.fixture
def wrong(reference: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """As the reference, but for single tokens of one sequence."""

    class WrongForOneSequence:
        def __getattr__(self, name: str):
            return getattr(reference.engine, name)

        def one_sequence_decoder(self, capacity: int) -> Decoder:
            decoder = reference.engine.decoder(1, capacity)
            step = decoder.step

            def wrong_step(embeds: np.ndarray, *others: np.ndarray) -> np.ndarray:
                logits = step(embeds, *others)
                return np.roll(logits, 1, axis=-1) if embeds.shape[1] == 1 else logits

            monkeypatch.setattr(decoder, "step", wrong_step)
            return decoder

    return replace(reference, engine=WrongForOneSequence())


@pytest.mark.parametrize("timed", [False, True])
def test_it_is_compared_where_it_is_asked_for(
    reference: Endpoint, wrong: Endpoint, samples: list[ParitySample], timed: bool
):
    options = replace(OPTIONS, measure_latency=timed)
    assert check(reference, wrong, samples, options).first_bad is None
    report = check(reference, wrong, samples, replace(options, one_sequence=True))
    assert report.first_bad == "decode"
    assert report.causes[0] == one_sequence.CAUSE
    assert [each.name for each in report.samples] == [each.name for each in samples]
    assert report.decode_steps[0].mean_kl > 0


def test_where_it_is_right_the_report_is_that_of_the_samples(reference: Endpoint, samples: list[ParitySample]):
    expected = check(reference, reference, samples, OPTIONS)
    assert check(reference, reference, iter(samples), replace(OPTIONS, one_sequence=True)) == expected


def test_progress_goes_on_from_it_to_the_samples(reference: Endpoint, samples: list[ParitySample]):
    shares: list[float] = []
    options = replace(OPTIONS, one_sequence=True)
    check(reference, reference, samples, options, lambda done, total, *_: shares.append(done / total))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    first = 1 / (1 + len(samples))
    assert any(share == pytest.approx(first, abs=0.02) for share in shares)


def test_how_many_of_its_few_tokens_agree_does_not_count(monkeypatch: pytest.MonkeyPatch):
    def judged(*_: object) -> tuple[list[SimpleNamespace], str]:
        rows = [("prefill", "top1_agreement"), ("decode", "mean_kl")]
        checks = [SimpleNamespace(name=name, checks=[SimpleNamespace(metric=m, passed=False)]) for name, m in rows]
        return checks, "prefill"

    monkeypatch.setattr(comparison, "judge", judged)
    assert comparison._judge_one_sequence(BoundaryStatistics(), OPTIONS.profile)[1] == "decode"
