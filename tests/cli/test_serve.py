"""Options of `serve` that are checked before anything is opened."""

from __future__ import annotations

import pytest

from r1v_export.cli.serve import API_KEYS_VARIABLE, _api_keys
from r1v_export.errors import UsageError


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
