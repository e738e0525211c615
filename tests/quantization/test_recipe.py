from __future__ import annotations

from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.errors import UsageError
from r1v_export.model_spec import ModelSpec
from r1v_export.quantization.recipe import PRESETS, Recipe, load, names, parse, resolve

SHIPPED = Path(__file__).parents[2] / "calibration/recipes"

INT4 = "{weights: {type: int4, granularity: group, group_size: 128, algorithm: rtn}}"
AWQ = "{weights: {type: int4, granularity: group, group_size: 128, algorithm: awq}}"
FP8 = "{weights: {type: fp8, granularity: channel, algorithm: rtn}, inputs: {type: fp8, mode: static}}"


@pytest.fixture(scope="module")
def spec(synth_checkpoint: Checkpoint) -> ModelSpec:
    """Two layers in each tower."""
    return synth_checkpoint.spec


def recipe(*rules: str, more: str = "") -> Recipe:
    lines = "\n".join(f"  - {{{rule}}}" for rule in rules)
    return parse(f"name: test\ndescription: for this test\nrules:\n{lines}\n{more}")


def refused(text: str) -> UsageError:
    with pytest.raises(UsageError) as error:
        parse(text)
    return error.value


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_shipped_recipes_are_valid_and_fit_a_model(name: str, spec: ModelSpec) -> None:
    shipped = load(name)
    assert shipped.name == name
    assert shipped.description
    assert resolve(shipped, spec)
    assert parse(shipped.to_yaml()) == shipped


def test_every_shipped_recipe_is_found_in_the_package() -> None:
    assert names() == sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    assert set(PRESETS.values()) <= set(names())


def test_fp8_takes_every_linear_but_the_head(spec: ModelSpec) -> None:
    linears = resolve(load("fp8"), spec)
    assert len(linears) == 2 * 4 + 2 + 2 * 7
    assert "language_model.lm_head" not in linears


def test_the_last_matching_rule_wins(spec: ModelSpec) -> None:
    found = resolve(recipe(f"modules: '*', scheme: {FP8}", f"modules: ['*.mlp.*'], scheme: {INT4}"), spec)
    assert found["language_model.model.layers.0.mlp.up_proj"].weights.type == "int4"
    assert found["language_model.model.layers.0.self_attn.q_proj"].weights.type == "fp8"


def test_null_keeps_linears_in_16_bits_and_layers_count_from_the_end(spec: ModelSpec) -> None:
    found = resolve(recipe(f"modules: '*', scheme: {FP8}", "modules: '*', layers: [-1], scheme: null"), spec)
    assert {name.split(".")[3] for name in found if "layers" in name} == {"0"}
    assert "mlp1.1" in found


def test_the_head_is_quantized_only_where_it_is_named(spec: ModelSpec) -> None:
    assert "language_model.lm_head" not in resolve(recipe(f"modules: ['*', '*lm_head'], scheme: {FP8}"), spec)
    assert list(resolve(recipe(f"modules: language_model.lm_head, scheme: {FP8}"), spec)) == ["language_model.lm_head"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("{type: fp4, granularity: channel, algorithm: rtn}", "'fp8', 'int8', 'int4' or 'uint4'"),
        ("{type: fp8, granularity: channel, algorithm: round}", "'rtn', 'awq', 'gptq', 'smoothquant'"),
        ("{type: fp8, granularity: channel, algorithm: awq}", "'int4' or 'uint4'"),
        ("{type: fp8, granularity: channel, algorithm: rtn, alpha: 0.5}", "unknown field rules.0.scheme.weights.alpha"),
        ("{type: int4, granularity: channel, algorithm: rtn}", "need granularity group"),
        ("{type: int8, granularity: group, group_size: 128, algorithm: rtn}", "need granularity channel or tensor"),
        ("{type: int4, granularity: group, algorithm: rtn}", "group_size is one of 32, 64, 128"),
        ("{type: int4, granularity: group, group_size: 48, algorithm: rtn}", "group_size is one of 32, 64, 128"),
        ("{type: fp8, granularity: channel, group_size: 128, algorithm: rtn}", "omitted otherwise"),
        ("{type: int8, granularity: channel, algorithm: smoothquant}", "smoothquant is for quantized inputs"),
        ("{type: int8, granularity: tensor, algorithm: rtn, clip: true}", "clip"),
        ("{type: int8, granularity: channel, algorithm: gptq, act_order: group}", "needs granularity group"),
        ("{type: int4, granularity: group, group_size: 64, algorithm: gptq, act_order: true}", "'none', 'static'"),
        ("{type: int4, granularity: group, group_size: 64, algorithm: awq, act_order: group}", "act_order"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights: str, message: str) -> None:
    error = refused(f"{{name: x, description: x, rules: [{{modules: '*', scheme: {{weights: {weights}}}}}]}}")
    assert message in str(error)
    assert "rules.0.scheme" in str(error)


@pytest.mark.parametrize(("weights", "inputs"), [("fp8", "int8"), ("int8", "fp8")])
def test_inputs_of_another_kind_than_the_weights_are_refused(weights: str, inputs: str) -> None:
    scheme = FP8.replace("type: fp8", f"type: {weights}", 1).replace("type: fp8, mode", f"type: {inputs}, mode")
    error = refused(f"{{name: x, description: x, rules: [{{modules: '*', scheme: {scheme}}}]}}")
    assert f"{weights} weights go with {weights} inputs" in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys with values"),
        ("- 1", "keys with values"),
        ("a: [", "not YAML"),
        ("{name: x, description: x, rules: []}", "at least 1 item"),
        ("{name: x, description: x}", "missing field rules"),
        (f"{{name: x, description: x, rules: [{{modules: '*', scheme: {FP8}, layer: [0]}}]}}", "rules.0.layer"),
        (f"{{name: x, description: x, rules: [{{modules: '*', scheme: {FP8}}}], kv_cache: int4}}", "'fp8' or 'int8'"),
        (
            f"{{name: x, description: x, rules: [{{modules: '*', scheme: {FP8}}}], observer: {{kind: max}}}}",
            "'absmax', 'percentile', 'mse' or 'entropy'",
        ),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str) -> None:
    assert message in str(refused(text))


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"fp8, fp8-kv, .*mixed.*or a \.yaml file"):
        load("fp9")


def test_a_misspelled_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'int4-atq'") as caught:
        load("int4-atq")
    assert caught.value.fix == "did you mean int4-awq?"


def test_a_folder_is_named_as_one_and_not_as_an_unknown_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="A folder is not a recipe") as caught:
        load(str(tmp_path))
    assert (caught.value.where, caught.value.found) == (str(tmp_path), "a folder")
    assert "--calibrated" in str(caught.value.fix)


def test_a_build_file_is_no_recipe_and_the_message_names_its_option(tmp_path: Path) -> None:
    path = tmp_path / "build.yaml"
    path.write_text("model: r1v-nano\nprecision: fp8\n")
    with pytest.raises(UsageError, match="This is a build file and not a recipe") as caught:
        load(path)
    assert caught.value.fix == f"pass it with --config {path}"
    assert caught.value.found == "model, precision"


def test_a_recipe_that_cannot_be_read_names_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read") as caught:
        load(tmp_path / "other.yaml")
    assert caught.value.found == "No such file or directory"
    assert "recipes list" in str(caught.value.fix)
    assert "recipes show" in str(refused("{name: x}").fix)


def test_a_recipe_file_is_read_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(load("fp8").to_yaml())
    assert load(tmp_path / "mine.yaml") == load("fp8")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "other.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "binary.yaml")


def test_a_rule_that_matches_nothing_is_an_error(spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"matches no linear(.|\n)*languag_model"):
        resolve(recipe(f"modules: 'languag_model.*', scheme: {FP8}"), spec)
    with pytest.raises(UsageError, match="in layers 7"):
        resolve(recipe(f"modules: '*', layers: [7], scheme: {FP8}"), spec)


def test_the_patch_embedding_is_never_quantized(spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match="convolution"):
        resolve(recipe(f"modules: vision_model.embeddings.patch_embedding, scheme: {FP8}"), spec)


def test_a_group_size_that_does_not_divide_is_named_with_one_that_does(spec: ModelSpec) -> None:
    language = spec.language.model_copy(update={"intermediate_size": 320})
    other = spec.model_copy(update={"language": language})
    with pytest.raises(UsageError, match=r"layers\.0\.mlp\.down_proj(.|\n)*320 in-features(.|\n)*group_size 64"):
        resolve(load("int4-rtn"), other)
    odd = spec.model_copy(update={"language": spec.language.model_copy(update={"intermediate_size": 300})})
    with pytest.raises(UsageError, match="scheme: null"):
        resolve(load("int4-rtn"), odd)


def test_algorithms_that_scale_a_tensor_need_all_that_read_it(spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"q_proj, .*v_proj read the same tensor(.|\n)*int4 rtn"):
        resolve(recipe(f"modules: '*', scheme: {AWQ}", f"modules: '*.v_proj', scheme: {INT4}"), spec)
    with pytest.raises(UsageError, match=r"gate_proj, .*up_proj(.|\n)*16-bit"):
        resolve(recipe(f"modules: 'language_model.*', scheme: {AWQ}", "modules: '*.up_proj', scheme: null"), spec)
    assert resolve(recipe(f"modules: '*', scheme: {INT4}", "modules: '*.up_proj', scheme: null"), spec)
