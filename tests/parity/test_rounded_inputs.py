from __future__ import annotations

from r1v_export.parity.rounded_inputs import RoundedInputs


def test_nearly_all_choices_are_not_said_to_be_all() -> None:
    said = RoundedInputs(mean_kl=1.33e-6, top1_agreement=0.99997).sentence
    assert said.endswith("1.33e-06 nats of mean KL, 99.99 % of greedy choices are the same")
    assert "100 % of" in RoundedInputs(mean_kl=0.0, top1_agreement=1.0).sentence
