"""A vocabulary kept between processes: the same tokenizer with and without it, and never a stale one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import r1v_export
from r1v_export.errors import CheckpointError
from r1v_export.processing import kept_bpe
from r1v_export.processing.tokenizer import Tokenizer
from r1v_export.processing.tokenizer_files import FILES
from r1v_export.user_cache import VARIABLE, cache_folder

NANO = Path(r1v_export.__file__).parent / "nano/model"
TEXT = "How many red circles are there? 日本 <img>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in FILES:
        shutil.copy(NANO / name, folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty, and one in which small vocabularies are kept, too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_bpe, "LEAST_TOKENS", 1)
    found = cache_folder("tokenizer")
    assert found is not None
    return found


@pytest.fixture
def count_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the tokenizer files were read."""
    reads: list[Path] = []
    read = kept_bpe.read_vocabulary
    monkeypatch.setattr(kept_bpe, "read_vocabulary", lambda folder: (reads.append(folder), read(folder))[1])
    return lambda: len(reads)


def content_of(tokenizer: Tokenizer) -> object:
    return tokenizer._plain.to_str(), tokenizer.added_tokens, tokenizer.encode_text(TEXT)


def test_what_is_kept_is_the_same_tokenizer(folder, cache, count_reads):
    expected = content_of(Tokenizer.from_folder(folder))
    assert not cache.exists()
    first, second = (Tokenizer.from_folder(folder, keep=True) for _ in range(2))
    assert content_of(first) == content_of(second) == expected
    assert count_reads() == 1
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_changed_is_read_again(folder, cache, count_reads, name):
    Tokenizer.from_folder(folder, keep=True)
    (folder / name).write_text((folder / name).read_text() + "\n")
    Tokenizer.from_folder(folder, keep=True)
    assert count_reads() == 2
    assert len(list(cache.iterdir())) == 1  # the stale one is gone


def test_a_file_that_is_new_is_read(folder, count_reads):
    (folder / "added_tokens.json").unlink()
    Tokenizer.from_folder(folder, keep=True)
    (folder / "added_tokens.json").write_text('{"<new>": 520}')
    assert Tokenizer.from_folder(folder, keep=True).token_id("<new>") == 520
    assert count_reads() == 2


def test_a_file_of_the_same_size_and_time_is_another_one(folder):
    file, other = folder / "added_tokens.json", folder / "other"
    file.write_text('{"<one>": 520}')
    Tokenizer.from_folder(folder, keep=True)
    before = file.stat()
    other.write_text('{"<two>": 520}')
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert file.stat().st_size == before.st_size
    assert Tokenizer.from_folder(folder, keep=True).token_id("<two>") == 520


@pytest.mark.parametrize("name", ["vocabulary.json", "rest.json"])
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"added": {}}', "\udcff", "[" * 100_000])
def test_what_is_damaged_is_made_anew(folder, cache, count_reads, name, damage):
    expected = content_of(Tokenizer.from_folder(folder, keep=True))
    [kept] = cache.glob(f"*/{name}")
    kept.write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert content_of(Tokenizer.from_folder(folder, keep=True)) == expected
    assert content_of(Tokenizer.from_folder(folder, keep=True)) == expected
    assert count_reads() == 2


def test_what_can_be_read_but_is_another_tokenizer_is_made_anew(folder, cache):
    """A token of a special token's id would let text make that token."""
    expected = content_of(Tokenizer.from_folder(folder, keep=True))
    [kept] = cache.glob("*/vocabulary.json")
    content = json.loads(kept.read_text())
    content["model"]["vocab"]["qz"] = 496
    content["model"]["merges"].append("q z")
    kept.write_text(json.dumps(content))
    assert content_of(Tokenizer.from_folder(folder, keep=True)) == expected


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_nothing_is_read_or_kept_where_others_may_write(folder, cache, count_reads, mode):
    Tokenizer.from_folder(folder, keep=True)
    before = list(cache.iterdir())
    cache.chmod(mode)
    Tokenizer.from_folder(folder, keep=True)
    assert count_reads() == 2
    (folder / "added_tokens.json").write_text('{"<one>": 520}')
    Tokenizer.from_folder(folder, keep=True)
    assert list(cache.iterdir()) == before


@pytest.mark.parametrize("name", ["vocabulary.json", "rest.json"])
def test_a_file_that_others_may_write_is_not_read(folder, cache, count_reads, name):
    Tokenizer.from_folder(folder, keep=True)
    [kept] = cache.glob(f"*/{name}")
    kept.chmod(0o666)
    Tokenizer.from_folder(folder, keep=True)
    assert count_reads() == 2


def test_what_is_kept_is_read_again_whatever_the_umask(folder, count_reads):
    before = os.umask(0)
    try:
        for _ in range(2):
            Tokenizer.from_folder(folder, keep=True)
    finally:
        os.umask(before)
    assert count_reads() == 1


def test_what_is_kept_has_to_give_text_back(folder, cache, count_reads):
    Tokenizer.from_folder(folder, keep=True)
    [kept], [rest] = cache.glob("*/vocabulary.json"), cache.glob("*/rest.json")
    words = json.dumps(json.loads(kept.read_text()) | {"decoder": None})
    kept.write_text(words)
    content = json.loads(rest.read_text()) | {"sha256": hashlib.sha256(words.encode()).hexdigest()}
    rest.write_text(json.dumps(content))
    Tokenizer.from_folder(folder, keep=True)
    assert count_reads() == 2


def test_a_folder_whose_name_is_no_text_is_opened(folder):
    other = folder.with_name(os.fsdecode(b"mod\xe8le"))
    folder.rename(other)
    Tokenizer.from_folder(other, keep=True)


def test_a_panic_on_what_is_kept_is_no_damage_of_the_tokenizer(folder, count_reads, monkeypatch):
    class PanicException(BaseException):
        """What pyo3 raises; it is no Exception."""

    def panic(*_):
        raise PanicException

    Tokenizer.from_folder(folder, keep=True)
    monkeypatch.setattr("tokenizers.Tokenizer.from_buffer", panic)
    Tokenizer.from_folder(folder, keep=True)
    assert count_reads() == 2


def test_two_folders_with_one_vocabulary_file_do_not_replace_each_other(folder, cache, count_reads):
    other = folder.with_name("other")
    other.mkdir()
    for name in FILES:
        (other / name).symlink_to(folder / name)
    for each in (folder, other, folder, other):
        Tokenizer.from_folder(each, keep=True)
    assert count_reads() == len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "settings", [{"continuing_subword_prefix": "", "end_of_word_suffix": ""}, {"ignore_merges": True}]
)
def test_settings_are_kept(folder, count_reads, settings):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= settings
    (folder / "tokenizer.json").write_text(json.dumps(content))
    first, second = (Tokenizer.from_folder(folder, keep=True) for _ in range(2))
    assert content_of(first) == content_of(second)
    assert count_reads() == 1


def test_merges_that_the_library_would_pass_over_are_not_kept(folder, cache):
    """It takes texts that begin so for a version."""
    word = "#version"
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    for id_, length in enumerate(range(2, len(word) + 2), start=600):
        text = f"{word}s"[:length]
        vocab[text] = id_
        content["model"]["merges"].insert(length - 2, [text[:-1], text[-1]])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    first, second = (Tokenizer.from_folder(folder, keep=True).encode_text(f"{word}s") for _ in range(2))
    assert first == second == [vocab[f"{word}s"]]
    assert not list(cache.iterdir())


def test_tokens_with_spaces_are_not_kept(folder, cache):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {" ": 600, "  ": 601}
    content["model"]["merges"].append([" ", " "])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    first, second = (Tokenizer.from_folder(folder, keep=True) for _ in range(2))
    assert content_of(first) == content_of(second)
    assert not list(cache.iterdir())


def test_a_small_vocabulary_is_not_kept(folder, cache, monkeypatch):
    monkeypatch.setattr(kept_bpe, "LEAST_TOKENS", 1000)
    Tokenizer.from_folder(folder, keep=True)
    assert not cache.exists()


def test_nothing_is_kept_or_read_that_the_user_does_not_let_be_kept(folder, cache, count_reads, monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    Tokenizer.from_folder(folder, keep=True)
    assert not cache.exists()
    monkeypatch.delenv(VARIABLE)
    Tokenizer.from_folder(folder, keep=True)
    monkeypatch.setenv(VARIABLE, "off")
    Tokenizer.from_folder(folder, keep=True)
    assert count_reads() == 3


def test_a_user_without_a_home_has_nothing_kept(folder, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("r1v_export.user_cache.Path.home", homeless)
    Tokenizer.from_folder(folder, keep=True)


def test_a_folder_that_cannot_be_written_is_no_error(folder, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("no folder")
    Tokenizer.from_folder(folder, keep=True)


def test_a_tokenizer_that_cannot_be_used_is_refused_each_time(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].append(["qqq", "zzz"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="damaged"):
            Tokenizer.from_folder(folder, keep=True)


def test_a_link_in_a_circle_is_no_file(tmp_path):
    (tmp_path / "vocab.json").symlink_to(tmp_path / "vocab.json")
    for keep in (False, True):
        with pytest.raises(CheckpointError, match="no tokenizer"):
            Tokenizer.from_folder(tmp_path, keep)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no tokenizer"):
        Tokenizer.from_folder(tmp_path, keep=True)
