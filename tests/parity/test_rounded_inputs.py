from __future__ import annotations

from r1v_export.parity.rounded_inputs import RoundedInputs


def test_nearly_all_choices_are_not_said_to_be_all() -> None:
    said = RoundedInputs(mean_kl=1.33e-6, top1_agreement=0.99997).sentence
    assert said.endswith("1.33e-06 nats of mean KL, 99.99 % of greedy choices are the same")
    assert said.startswith("inputs of quantized weights are rounded to int8")
    with_head = RoundedInputs(head=True, mean_kl=None, top1_agreement=None).sentence
    assert with_head.startswith("the head, its inputs and those of quantized weights are rounded to int8 in blocks")
    assert "100 % of" in RoundedInputs(mean_kl=0.0, top1_agreement=1.0).sentence


def test_of_a_pair_the_engines_that_round_are_named() -> None:
    both = RoundedInputs(mean_kl=None, top1_agreement=None, engines=("onnxruntime", "openvino")).sentence
    assert "rounded to int8 in blocks by onnxruntime and openvino; that is a part" in both
    assert " by " not in RoundedInputs(mean_kl=None, top1_agreement=None).sentence


def test_the_divergence_of_steps_is_not_said_to_be_of_images_which_are_not_in_it() -> None:
    tower = "weights and inputs of the vision tower are rounded to int8"
    both = RoundedInputs(images=True, mean_kl=2e-6, top1_agreement=1.0, engines=("onnxruntime",)).sentence
    of_inputs, of_images = both.split("; ")
    assert of_inputs.endswith("by onnxruntime: 2.00e-06 nats of mean KL, 100 % of greedy choices are the same")
    assert of_images == f"{tower} as well, which the error at vision shows"
    alone = RoundedInputs(inputs=False, images=True, mean_kl=2e-6, top1_agreement=1.0).sentence
    assert alone == f"{tower}, which the error at vision shows"
