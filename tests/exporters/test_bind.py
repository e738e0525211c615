from __future__ import annotations

import hashlib
import time

import numpy as np
import onnx_ir as ir
import pytest
import torch

from r1v_export.errors import CheckpointError
from r1v_export.exporters import bind
from r1v_export.exporters.export import export_graph
from r1v_export.hashed_files import record_hashes
from r1v_export.write_journal import WriteJournal
from tests.tiny_models import MemoryCheckpoint


def exported(name, checkpoint, folder, compute=torch.float32) -> dict[str, ir.ExternalTensor]:
    model = ir.load(export_graph(name, checkpoint, folder, compute))
    return {
        n: v.const_value for n, v in model.graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)
    }


def with_weight(checkpoint: MemoryCheckpoint, name: str, tensor: torch.Tensor) -> MemoryCheckpoint:
    return MemoryCheckpoint(checkpoint.spec, checkpoint.tensors | {name: tensor})


@pytest.mark.parametrize("chunk_bytes", [64 << 20, 1000], ids=["one chunk", "many chunks"])
def test_every_weight_is_written_as_it_is_or_transposed(chunk_bytes, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(bind, "CHUNK_BYTES", chunk_bytes)
    written = exported("vision", checkpoint, tmp_path)
    for name, tensor in written.items():
        weight = checkpoint.tensors[name.removesuffix(".T")].numpy()
        np.testing.assert_array_equal(tensor.numpy(), weight.T if name.endswith(".T") else weight, err_msg=name)
    assert {name.removesuffix(".T") for name in written} == {
        n for n in checkpoint.tensors if n.startswith("vision_model")
    }


def test_rows_of_a_transposed_matrix_are_copied_as_fast_as_whole_matrices_are():
    """An int8 weight as wide as the 38B's took four times as long: most of writing its decoder."""
    rows = torch.randint(-8, 8, (6144, 2048), dtype=torch.int8).t()[:1024]
    took: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(5):
        for name, copied in (("ours", lambda: bind._in_order(rows, torch.int8)), ("plain", rows.contiguous)):
            started = time.process_time()
            copy = copied()
            took[name].append(time.process_time() - started)
            assert torch.equal(copy, rows)
            assert copy.is_contiguous()
    assert min(took["ours"]) < 0.7 * min(took["plain"])


def test_tensors_start_on_pages_in_the_order_of_use(checkpoint, tmp_path):
    offsets = [tensor.offset for tensor in exported("decoder", checkpoint, tmp_path).values()]
    assert offsets == sorted(offsets)
    assert all(offset % bind.ALIGNMENT_BYTES == 0 for offset in offsets)


def test_weights_are_rounded_to_the_compute_type(checkpoint, tmp_path):
    written = exported("projector", checkpoint, tmp_path, torch.bfloat16)["mlp1.1.weight.T"]
    expected = checkpoint.tensors["mlp1.1.weight"].to(torch.bfloat16).float().numpy().T
    np.testing.assert_array_equal(written.numpy().astype(np.float32), expected)


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        export_graph("decoder", checkpoint, tmp_path / folder, torch.float32)
    for file in ("decoder.onnx", "decoder.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("written_before", [0, 1, 2, 3, 4])
def test_an_interrupted_graph_goes_on_behind_what_is_written(written_before, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("r1v_export.hashed_files.NOTED_BYTES", 0)
    (tmp_path / "whole").mkdir()
    export_graph("projector", checkpoint, tmp_path / "whole", torch.float32)
    read, names = type(checkpoint).read, []

    def stop_at(count: int):
        def counted(self, name):
            if len(names) == count:
                raise KeyboardInterrupt
            names.append(name)
            return read(self, name)

        monkeypatch.setattr(type(checkpoint), "read", counted)
        journal = WriteJournal(tmp_path / "journal.json", tmp_path / "graph", "key")
        journal.prepare()
        return record_hashes(journal)

    with stop_at(written_before), pytest.raises(KeyboardInterrupt):
        export_graph("projector", checkpoint, tmp_path / "graph", torch.float32)
    with stop_at(-1) as hashes:
        export_graph("projector", checkpoint, tmp_path / "graph", torch.float32)
    data = tmp_path / "graph" / "projector.data"
    assert data.read_bytes() == (tmp_path / "whole" / "projector.data").read_bytes()
    assert hashes.sha256(data) == hashlib.sha256(data.read_bytes()).hexdigest()
    assert len(names) == len(set(names)) == 6, "each tensor is read once"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_a_number_is_named(value, checkpoint, tmp_path):
    broken = checkpoint.tensors["mlp1.3.weight"].clone()
    broken[3, 5] = value
    with pytest.raises(CheckpointError, match=r"mlp1\.3\.weight"):
        export_graph("projector", with_weight(checkpoint, "mlp1.3.weight", broken), tmp_path, torch.float32)


def test_a_weight_too_large_for_fp16_is_named_with_the_way_out(checkpoint, tmp_path):
    large = checkpoint.tensors["mlp1.1.bias"] + 1e5
    with pytest.raises(CheckpointError, match=r"(?s)mlp1\.1\.bias.*--precision bf16"):
        export_graph("projector", with_weight(checkpoint, "mlp1.1.bias", large), tmp_path, torch.float16)
