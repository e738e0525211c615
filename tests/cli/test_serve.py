"""Options of `serve` that are checked before anything is opened."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from r1v_export.cli import main
from r1v_export.cli.serve import API_KEYS_VARIABLE, _api_keys, _warn_of_no_listener
from r1v_export.errors import UsageError
from r1v_export.runner.batching.options import BatchingOptions


def test_keys_of_the_variable_are_those_between_commas_and_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, "a, b,")
    assert _api_keys(("c",)) == ("c", "a", "b")
    monkeypatch.setenv(API_KEYS_VARIABLE, "")
    assert _api_keys(()) == ()


@pytest.mark.parametrize(("given", "variable", "where"), [((), ",", API_KEYS_VARIABLE), ((" ",), "a", "--api-key")])
def test_a_blank_key_does_not_open_the_server(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], variable: str, where: str
) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, variable)
    with pytest.raises(UsageError, match="blank") as caught:
        _api_keys(given)
    assert caught.value.where == where


def test_a_triton_server_that_does_not_listen_yet_is_said_to_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"grpc://127.0.0.1:{server.getsockname()[1]}"
        _warn_of_no_listener(address, "http://127.0.0.1:8000")
        assert capsys.readouterr().err == ""
    _warn_of_no_listener(address, "http://127.0.0.1:8000")
    said = capsys.readouterr().err
    assert f"warning: nothing listens at {address} yet" in said
    assert "http://127.0.0.1:8000/ready" in said


@pytest.mark.parametrize(
    ("option", "value", "what", "fix"),
    [
        ("--allow-image-host", "http://a/b", "This is no host.", "give the host alone"),
        ("--served-model-name", " ", "The model's name is blank.", "give a name"),
        ("--host", "", "The address to listen on is blank.", "0.0.0.0 is every one"),
        ("--triton", "localhost:8001", "no address of a Triton server", "grpc://localhost:8001"),
    ],
)
def test_a_value_that_cannot_be_says_what_to_give(
    option: str, value: str, what: str, fix: str, tiny_built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["serve", str(tiny_built), option, value]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert fix in said.partition("fix: ")[2]


@pytest.mark.parametrize(
    ("given", "chunk"),
    [((), None), (("--prefill-chunk", "40"), 40)],
)
def test_the_engine_says_how_large_pieces_of_prompts_are_unless_an_option_does(
    given: tuple[str, ...], chunk: int | None, tiny_built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[BatchingOptions] = []

    def own_loop(*arguments: object) -> None:
        found.extend(each for each in arguments if isinstance(each, BatchingOptions))
        raise UsageError("Enough is known.")

    monkeypatch.setattr("r1v_export.cli.serve._own_loop", own_loop)
    assert main.run(["serve", str(tiny_built), *given]) == 2
    assert [options.prefill_chunk for options in found] == [chunk]
