"""MODEL -> folder: the package's own, a path, or a hub id. The hub is the real client against a server of ours."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest

import r1v_export
from r1v_export.checkpoint.checkpoint import Checkpoint
from r1v_export.checkpoint.resolve import Source, resolve
from r1v_export.errors import CheckpointError, UsageError
from tests.checkpoint.fake_hub import COMMIT, FakeHub

HUB_ID = "Org/Model"


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    (tiny / "modeling_skywork_chat.py").write_text("raise SystemExit('remote code')")
    (tiny / "pytorch_model.bin").write_bytes(b"pickle")
    server = FakeHub(tiny)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(hub_constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_TOKEN", "")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def refused(model: str, **options) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        resolve(model, **options)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("model", [None, "r1v-nano"])
def test_nothing_and_r1v_nano_name_the_model_of_the_package(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(r1v_export.__file__).parent / "nano" / "model"
    assert resolve(model) == (folder, Source("builtin", "r1v-nano", None))


def test_a_folder_is_taken_as_it_is(tiny):
    assert resolve(tiny) == (tiny, Source("folder", str(tiny), None))


def test_a_folder_comes_before_a_hub_id_of_its_name(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Org").mkdir()
    tiny.rename(tmp_path / "Org" / "Model")
    assert resolve(HUB_ID).source == Source("folder", HUB_ID, None)


@pytest.mark.parametrize("model", ["no-such-folder", "/no/such/folder", "./a/b", "a/b/c", "Org/", "/Model", "a b/c"])
def test_neither_a_folder_nor_a_hub_id_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refused(model)
    assert "no such checkpoint" in error.what
    assert "owner/name" in error.found


def test_a_file_is_refused_in_favor_of_its_folder(tiny):
    assert "folder that contains it" in refused(str(tiny / "config.json")).fix


def test_a_revision_goes_with_a_hub_id_only(tiny):
    with pytest.raises(UsageError, match="--revision main") as caught:
        resolve(tiny, revision="main")
    assert caught.value.exit_code == 2


def test_a_hub_id_is_downloaded_without_code_and_without_pickles(hub, tiny):
    checkpoint = Checkpoint.open(HUB_ID)
    assert checkpoint.source == Source("hub", HUB_ID, COMMIT)
    assert "model.safetensors" in hub.served
    assert not [name for name in hub.served if name.endswith((".py", ".bin"))]
    assert checkpoint.spec == Checkpoint.open(tiny).spec


def test_what_was_downloaded_is_there_offline(hub):
    online = Checkpoint.open(HUB_ID, revision="main")
    hub.served.clear()
    offline = Checkpoint.open(HUB_ID, revision="main", offline=True)
    assert hub.served == []
    assert (offline.folder, offline.source) == (online.folder, online.source)


def test_a_cache_laid_out_by_hand_is_read_offline(pristine, tmp_path, monkeypatch):
    """The hub cache's documented layout: refs/<branch> holds the commit, snapshots/<commit>/* links into blobs/."""
    repository = tmp_path / "models--Org--Model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(pristine, repository / "blobs")
    for blob in (repository / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(blob)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    checkpoint = Checkpoint.open(HUB_ID, offline=True)
    assert (checkpoint.folder, checkpoint.source.revision) == (snapshot, COMMIT)


def test_what_is_not_cached_is_refused_offline(hub):
    error = refused(HUB_ID, offline=True)
    assert "not in the hub's local cache" in error.what
    assert str(error.found).startswith("no snapshot in ")
    assert error.fix == "run `hf download Org/Model` where there is a network"


def test_a_partial_download_is_refused_offline(hub):
    folder = resolve(HUB_ID).folder
    (folder / "model.safetensors").unlink()
    assert "cached only in part" in refused(HUB_ID, offline=True).what


def test_an_unreachable_hub_is_said_to_be(hub, monkeypatch):
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    error = refused(HUB_ID)
    assert "cannot be reached" in error.what
    assert "network" in error.fix


def test_an_unknown_repository_is_named(hub):
    error = refused("Org/Other")
    assert "no such repository, or it is private" in error.what
    assert error.where == "Org/Other"


def test_an_unknown_revision_is_named(hub):
    error = refused(HUB_ID, revision="v9")
    assert "no such revision" in error.what
    assert error.where == "Org/Model at revision v9"


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "is gated"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated"),
        (401, {"X-Error-Code": "RepoNotFound"}, "no such repository, or it is private"),
        (401, {}, "refuses access"),
        (403, {}, "refuses access"),
    ],
)
def test_a_refused_login_says_how_to_log_in(hub, status, headers, message):
    hub.refuse = (status, headers)
    error = refused(HUB_ID)
    assert message in error.what
    assert "hf auth login" in error.fix


def test_a_hub_that_answers_nonsense_is_no_traceback(hub):
    hub.refuse = (200, {"Content-Type": "text/html"})
    assert "cannot be downloaded" in refused(HUB_ID).what


def test_a_local_folder_needs_no_hub_client(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert json.loads((resolve(str(tiny)).folder / "config.json").read_text())
