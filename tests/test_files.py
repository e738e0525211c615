"""Files that are no files are refused at once, in the place of any input; a full disk is named."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.cli import main
from r1v_export.errors import CapabilityError, CheckpointError, InputError, R1VError, UsageError
from r1v_export.files import (
    clone_or_copy,
    explain_full_disk,
    fill_folder,
    link_or_copy,
    linked_bytes,
    open_regular,
    read_regular_bytes,
    read_regular_text,
    require_readable,
    require_writable,
)
from r1v_export.processing.tokenizer import Tokenizer

Special = Callable[[Path], None]


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPECIALS = [make_pipe, make_link_to_zeros, Path.mkdir]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", SPECIALS)
def test_what_is_no_regular_file_is_refused_without_waiting(make: Special, tmp_path: Path) -> None:
    make(tmp_path / "input")
    for read in (open_regular, read_regular_bytes, read_regular_text):
        with pytest.raises(OSError, match="not a regular file"):
            read(tmp_path / "input")


@pytest.mark.parametrize("platform", ["linux", "other"])
def test_what_is_mapped_is_read_at_once_and_where_that_fails_the_byte_is_named(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel, and where it cannot do that, by reading."""
    monkeypatch.setattr("sys.platform", platform)
    page = mmap.ALLOCATIONGRANULARITY
    path, size = tmp_path / "input", 5 * page
    path.write_bytes(bytes(size))
    with (
        open_regular(path) as file,
        mmap.mmap(file.fileno(), size - page, access=mmap.ACCESS_COPY, offset=page) as part,
    ):
        require_readable(part, file, page)
        os.truncate(path, 3 * page)
        with pytest.raises(OSError, match=f"it ends at byte {3 * page}"):
            require_readable(part, file, page)


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "input"))
        with pytest.raises(OSError, match="a socket and not a regular file"):
            open_regular(tmp_path / "input")


def test_a_link_to_a_file_is_read_with_universal_line_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("a\r\nb\rü".encode())
    (tmp_path / "link").symlink_to("file")
    assert read_regular_text(tmp_path / "link") == (tmp_path / "file").read_text(encoding="utf-8") == "a\nb\nü"


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="1099511627776 bytes, more than the limit") as caught:
        read_regular_bytes(tmp_path / "huge")
    assert caught.value.errno == errno.EFBIG


def test_no_descriptor_is_left_behind_by_a_refusal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(OSError, match="named pipe"):
            open_regular(tmp_path / "pipe")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def checkpoint(synth_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synth_checkpoint.folder, tmp_path / "checkpoint"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", SPECIALS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_checkpoint_with_a_file_that_is_none_is_refused(make: Special, name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()
    make(checkpoint / name)
    with pytest.raises(CheckpointError):
        _ = Checkpoint.open(checkpoint).generation_config


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", SPECIALS)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_a_tokenizer_with_a_file_that_is_none_is_refused(make: Special, name: str, checkpoint: Path) -> None:
    (checkpoint / name).unlink()
    make(checkpoint / name)
    with pytest.raises(CheckpointError):
        Tokenizer.from_folder(checkpoint)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", SPECIALS)
def test_settings_and_calibration_sets_that_are_no_files_are_refused(make: Special, tmp_path: Path) -> None:
    from r1v_export.build_file import load_config
    from r1v_export.quantization.calibration.raw_examples import jsonl_examples
    from r1v_export.quantization.recipe import load

    make(tmp_path / "input.yaml")
    with pytest.raises(UsageError, match="not a regular file"):
        load_config(tmp_path / "input.yaml", {})
    with pytest.raises(UsageError):
        load(str(tmp_path / "input.yaml"))
    with pytest.raises(InputError, match="not a regular file"):
        jsonl_examples(tmp_path / "input.yaml", 1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", SPECIALS)
@pytest.mark.parametrize(
    "name", ["manifest.json", "model.json", "pipeline.json", "tokenizer.json", "engines/onnxruntime/decoder.onnx"]
)
def test_a_bundle_with_a_file_that_is_none_is_refused(
    make: Special, name: str, nano_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle", copy_function=os.link))
    (bundle / name).unlink()
    make(bundle / name)
    assert main.run(["run", str(bundle), "What is it?"]) != 0
    printed = capsys.readouterr().err
    assert Path(name).name in printed
    assert "Traceback" not in printed
    assert main.run(["verify", str(bundle)]) != 0


def test_a_full_disk_names_path_and_bytes_and_is_a_lack_of_the_machine(tmp_path: Path) -> None:
    with (
        pytest.raises(CapabilityError, match=r"(?s)disk is full.*out.*of \d+ bytes are free") as caught,
        explain_full_disk(tmp_path / "out"),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert caught.value.exit_code == 4


def test_a_full_disk_says_how_much_is_missing(tmp_path: Path) -> None:
    (tmp_path / "half").write_bytes(b"x" * 1000)
    with pytest.raises(CapabilityError) as caught, explain_full_disk(tmp_path, 1 << 60):
        raise OSError(errno.ENOSPC, "No space left on device")
    missing = int(str(caught.value.expected).split()[1])
    assert 1 << 59 < missing <= (1 << 60) - 1000


def test_a_library_that_meets_a_full_disk_in_its_own_words_is_understood(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(CapabilityError, match="disk is full"), explain_full_disk(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [ValueError("bad"), PermissionError(errno.EACCES, "no"), InputError("no")])
def test_other_errors_pass_through(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, explain_full_disk(tmp_path):
        raise error
    assert caught.value is error
    assert not isinstance(error, R1VError) or error.exit_code == 1


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
@pytest.mark.parametrize("command", ["build -o", "calibrate --precision fp8 -o", "synth", "check BUNDLE --report"])
def test_an_output_folder_that_cannot_be_written_is_named_before_any_work(
    command: str, place: str, nano_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    out = str(tmp_path / place)
    assert main.run([*command.replace("BUNDLE", str(nano_bundle)).split(), out]) == 2
    err = capsys.readouterr().err
    assert out in err
    assert "Errno" not in err
    assert err.splitlines()[-1].startswith("  fix: ")


def test_trying_a_writable_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b", "?")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_filled_at_the_end_and_its_last_file_comes_last(tmp_path: Path, monkeypatch) -> None:
    moved = []
    monkeypatch.setattr(Path, "replace", lambda path, target: moved.append(path.name) or path.rename(target))
    with fill_folder(tmp_path / "new", last="b") as unfinished:
        for name in "abc":
            (unfinished / name).write_text(name)
        assert [path.name for path in (tmp_path / "new").iterdir()] == [unfinished.name]
    assert sorted(moved[:-1]) == ["a", "c"]
    assert moved[-1] == "b"
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {"a": "a", "b": "b", "c": "c"}


def test_a_file_gets_another_name_or_is_copied_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("content")
    (tmp_path / "link").symlink_to("a")
    link_or_copy(tmp_path / "link", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    assert not (tmp_path / "b").is_symlink()

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "link", tmp_path / "c")
    assert not (tmp_path / "c").samefile(tmp_path / "a")
    assert (tmp_path / "c").read_text() == "content"


def test_a_file_is_copied_with_and_without_the_kernels_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(content)
    clone_or_copy(tmp_path / "a", tmp_path / "b")
    copied, calls = os.copy_file_range, []

    def stop_half_way(*args: int) -> int:
        calls.append(args)
        if len(calls) > 1:
            raise OSError(errno.EXDEV, "another file system")
        return copied(args[0], args[1], 1_000_000, *args[3:])

    monkeypatch.setattr(os, "copy_file_range", stop_half_way)
    clone_or_copy(tmp_path / "a", tmp_path / "c")
    assert len(calls) == 2
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes() == content
    assert not (tmp_path / "b").samefile(tmp_path / "a")


def test_what_a_killed_process_left_of_a_folder_is_made_anew(tmp_path: Path) -> None:
    with fill_folder(tmp_path, last="a") as killed:
        pass
    killed.mkdir()
    (killed / "half").write_text("")
    with fill_folder(tmp_path, last="a") as unfinished:
        (unfinished / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_check_prints_its_table_before_it_writes_the_report(
    nano_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("r1v_export.parity.report.write_report", full)
    options = ["--questions", "1", "--max-new-tokens", "2", "--report", str(tmp_path)]
    assert main.run(["check", str(nano_bundle), *options]) == 2
    printed = capsys.readouterr()
    assert "1 of 1 answer is the same" in printed.out
    assert "Read-only file system" in printed.err
    assert "--report" in printed.err


def test_hard_links_to_each_other_and_elsewhere_take_no_disk(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"1" * 1000)
    (folder / "alone").write_bytes(b"2" * 10)
    (folder / "first").write_bytes(b"3" * 100)
    sizes = {"alone": 10, "first": 100}
    assert linked_bytes(folder, sizes) == 0
    os.link(folder / "first", folder / "second")
    os.link(tmp_path / "elsewhere", folder / "of another")
    assert linked_bytes(folder, {**sizes, "second": 100, "of another": 1000}) == 1100


def test_a_file_in_place_of_a_folder_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written to[\s\S]*found: +a file\n[\s\S]*fix: +another"):
        require_writable(tmp_path / "file", "another")
