"""Plans that are not what they should be are refused before TensorRT sees them."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
from pathlib import Path

import pytest
import torch

from r1v_export import contract
from r1v_export.errors import BundleError, CapabilityError, EngineMismatchError
from r1v_export.targets.tensorrt.build.plan import DESCRIPTION, PLAN, PlanWriter, read_info, require_runs_here
from r1v_export.targets.tensorrt.runtime.loading import deserialize
from r1v_export.targets.tensorrt.target import TensorRTRTXTarget


@pytest.fixture
def folder(fp32, tmp_path) -> Path:
    """An engine of one's own, to break."""
    return Path(shutil.copytree(fp32.engine_folder, tmp_path / "engines" / "tensorrt-rtx"))


def open_it(fp32, folder: Path) -> None:
    TensorRTRTXTarget().open(folder, fp32.spec, "cpu")


def test_a_sound_engine_gets_as_far_as_the_gpu_that_it_lacks(fp32, folder, capfd) -> None:
    with pytest.raises(CapabilityError, match="run on a CUDA GPU") as caught:
        open_it(fp32, folder)
    assert caught.value.exit_code == 4
    assert "89" in str(caught.value.expected)
    assert capfd.readouterr().err == "", "the library's own complaints about the driver say no more"


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a driver")
def test_deserializing_goes_as_far_as_the_driver_and_ends_in_one_message(library, folder, capfd) -> None:
    runtime = library.module.Runtime(library.logger(lambda severity, message: None))
    with pytest.raises(BundleError, match=r"refuses a plan[\s\S]*projector\.plan"):
        deserialize(library, runtime, folder / f"{contract.PROJECTOR}{PLAN}")


def test_a_plan_cut_short_is_named(fp32, folder) -> None:
    plan = folder / f"{contract.DECODER}{PLAN}"
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"cut short[\s\S]*decoder\.plan"):
        open_it(fp32, folder)


def test_a_plan_of_the_right_length_that_is_none_is_found_by_its_header(fp32, folder) -> None:
    plan = folder / f"{contract.VISION}{PLAN}"
    plan.write_bytes(b"x" * plan.stat().st_size)
    with pytest.raises(BundleError, match=r"header[\s\S]*vision\.plan"):
        open_it(fp32, folder)


@pytest.mark.parametrize("name", [f"{contract.PROJECTOR}{PLAN}", f"{contract.PROJECTOR}{DESCRIPTION}"])
def test_a_missing_file_is_named(fp32, folder, name) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match="incomplete"):
        open_it(fp32, folder)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"library": "tensorrt-rtx"}'])
def test_a_malformed_description_is_refused(fp32, folder, content) -> None:
    (folder / f"{contract.VISION}{DESCRIPTION}").write_text(content)
    with pytest.raises(BundleError, match="description"):
        open_it(fp32, folder)


def test_a_plan_of_another_version_says_which_two(fp32, library, folder) -> None:
    info = read_info(folder, contract.VISION).model_copy(update={"version": "1.2.0.54"})
    with pytest.raises(EngineMismatchError, match=r"another version[\s\S]*1\.2\.0\.54"):
        require_runs_here(info, library, folder / "vision.plan", None)


def test_a_plan_for_another_gpu_says_which_sm_to_build_for(fp32, library, folder) -> None:
    info = read_info(folder, contract.VISION)
    require_runs_here(info, library, folder / "vision.plan", 89)
    with pytest.raises(EngineMismatchError, match=r"another GPU[\s\S]*--sm 120"):
        require_runs_here(info, library, folder / "vision.plan", 120)


def test_what_was_written_is_hashed_on_the_way() -> None:
    file = io.BytesIO()
    writer = PlanWriter(file)
    assert [writer.write(part) for part in (b"abc", bytearray(b"de"))] == [3, 2]
    assert file.getvalue() == b"abcde"
    assert (writer.size_bytes, writer.sha256) == (5, hashlib.sha256(b"abcde").hexdigest())


def test_a_full_disk_ends_the_build_with_what_to_do() -> None:
    class Full(io.BytesIO):
        def write(self, data) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    writer = PlanWriter(Full())
    assert writer.write(b"abc") == 0
    with pytest.raises(CapabilityError, match="no room"):
        writer.raise_error(Path("vision.plan"))
