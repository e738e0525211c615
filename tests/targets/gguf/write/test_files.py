"""GGUF files against gguf-py's reader, its quantizers and its names, and against transformers' reader of GGUF."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.gguf.names import stored_tensors
from r1v_export.config import BuildConfig
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.reference.model import load
from r1v_export.targets.gguf.target import GgufTarget
from r1v_export.targets.gguf.write.files import write_gguf
from r1v_export.targets.gguf.write.types import K_QUANTS

TEXT = "How many objects do you see? 12 of 3,  or\n\nnone: Größe 中文"


def test_every_tensor_has_a_name_that_gguf_py_lists_for_the_architecture(written) -> None:
    for file, architecture in (("model.gguf", gguf.MODEL_ARCH.QWEN2), ("mmproj.gguf", gguf.MODEL_ARCH.MMPROJ)):
        reader = gguf.GGUFReader(written.folder / file)
        layers = max(written.checkpoint.spec.language.num_layers, 4)
        listed = {
            gguf.TENSOR_NAMES[tensor].format(bid=layer)
            for tensor in gguf.MODEL_TENSORS[architecture]
            for layer in range(layers)
        }
        names = [tensor.name for tensor in reader.tensors]
        assert len(names) == len(set(names))
        assert {name.removesuffix(".weight").removesuffix(".bias") for name in names} <= listed
        assert reader.fields["general.architecture"].contents() == gguf.MODEL_ARCH_NAMES[architecture]


def test_every_plain_tensor_of_the_language_model_is_the_checkpoints(written) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(written.folder / "model.gguf").tensors}
    quantized = written.artifact.schemes if written.artifact else {}
    overrides = written.artifact.overrides if written.artifact else {}
    for canonical, stored in stored_tensors(written.checkpoint.spec).items():
        if stored.file != "model.gguf" or canonical.removesuffix(".weight") in quantized:
            continue
        tensor = tensors[stored.names[0]]
        source = overrides[canonical]() if canonical in overrides else written.checkpoint.read(canonical)
        source = source.float().numpy()
        if tensor.tensor_type.name in K_QUANTS:  # gguf-py only reads these
            error = np.linalg.norm(gguf.quants.dequantize(tensor.data, tensor.tensor_type) - source)
            assert error < 0.08 * np.linalg.norm(source)
        else:
            expected = gguf.quants.quantize(source, tensor.tensor_type)
            assert np.array_equal(expected.view(np.uint8).ravel(), tensor.data.view(np.uint8).ravel())


def test_quantized_blocks_hold_the_calibrations_values(make) -> None:
    for name in ("int8-smoothquant", "int4-awq", "int4-32", "uint4-32"):
        written = make("300m", name)
        tensors = {
            tensor.name: tensor
            for file in ("model.gguf", "mmproj.gguf")
            for tensor in gguf.GGUFReader(written.folder / file).tensors
        }
        for linear, quantized in written.artifact.linears():
            names = stored_tensors(written.checkpoint.spec)[f"{linear}.weight"].names
            read = [gguf.quants.dequantize(tensors[n].data, tensors[n].tensor_type) for n in names]
            scale = quantized.scale if quantized.scale.ndim == 2 else quantized.scale[:, None]
            scale = scale.repeat_interleave(quantized.shape[1] // scale.shape[1], dim=1)
            zero = torch.zeros(1) if quantized.zero_point is None else quantized.zero_point.float()
            zero = zero.repeat_interleave(quantized.shape[1] // zero.shape[-1], dim=-1)
            expected = quantized.qweight.float() * scale.half().float() - (zero * scale).half().float()
            assert np.array_equal(np.concatenate(read), expected.numpy()), linear


def test_a_q4_k_m_file_says_so_and_its_head_has_more_bits(make) -> None:
    reader = gguf.GGUFReader(make("300m", "Q4_K_M").folder / "model.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_K_M
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == kinds["blk.0.attn_v.weight"] == kinds["blk.0.ffn_down.weight"] == "Q4_K"
    assert kinds["output.weight"] == kinds["blk.1.attn_v.weight"] == kinds["blk.1.ffn_down.weight"] == "Q6_K"
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.attn_q.bias"] == "F32"


@pytest.mark.parametrize("file", ["model", "mmproj"])
def test_one_file_alone_is_the_same_as_next_to_the_other(make, tmp_path, file) -> None:
    written = make("300m", "fp16")
    config = BuildConfig(precision="fp16", targets={"gguf": {"files": file}})
    write_gguf(written.checkpoint, None, config, tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == (written.folder / f"{file}.gguf").read_bytes()
    assert GgufTarget().engine_document(tmp_path).files == {file: path.name}


def test_the_types_of_the_build_file_are_of_what_the_recipe_leaves(make, tmp_path) -> None:
    written = make("300m", "int4-awq")
    config = BuildConfig(precision="int4", targets={"gguf": {"model": "Q4_K_M", "mmproj": "Q8_0"}})
    write_gguf(written.checkpoint, written.artifact, config, tmp_path)
    before, after = (
        {
            tensor.name: tensor
            for file in ("model.gguf", "mmproj.gguf")
            for tensor in gguf.GGUFReader(folder / file).tensors
        }
        for folder in (written.folder, tmp_path)
    )
    kinds = {after[name].tensor_type.name for name, tensor in before.items() if tensor.tensor_type.name == "BF16"}
    assert kinds == {"Q4_K", "Q6_K", "Q8_0"}
    for name, tensor in before.items():
        if tensor.tensor_type.name != "BF16":
            assert np.array_equal(after[name].data, tensor.data), name


def test_transformers_reads_the_same_language_model_from_the_file(make) -> None:
    written = make("300m", "fp32")
    path = written.folder / "model.gguf"
    config = transformers.AutoConfig.from_pretrained(written.folder, gguf_file=path.name)
    with torch.device("meta"):
        empty = transformers.Qwen2ForCausalLM(config)
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=empty)["tensors"]
    language = written.checkpoint.spec.language
    assert config.rms_norm_eps == pytest.approx(language.rms_norm_eps)
    assert config.max_position_embeddings == language.max_position_embeddings
    assert config.rope_parameters["rope_theta"] == language.rope_theta
    own = load(written.checkpoint).language_model.state_dict()
    assert theirs.keys() == own.keys() == empty.state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in theirs.items())


def test_transformers_tokenizes_with_the_files_vocabulary_as_the_checkpoints_own(tmp_path) -> None:
    nano = Checkpoint.open()
    write_gguf(nano, None, BuildConfig(precision="fp16", targets=("gguf",)), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ours = Tokenizer.from_folder(nano.folder)
    assert theirs.encode(TEXT, add_special_tokens=False) == ours.encode_text(TEXT)
    assert theirs.convert_tokens_to_ids("<IMG_CONTEXT>") == ours.token_id("<IMG_CONTEXT>")


def test_the_same_input_gives_the_same_bytes(make, tmp_path) -> None:
    written = make("6b", "fp16")
    write_gguf(written.checkpoint, None, written.config, tmp_path)
    for file in ("model.gguf", "mmproj.gguf"):
        assert (tmp_path / file).read_bytes() == (written.folder / file).read_bytes()
