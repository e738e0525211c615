"""A report names the command that made it, and none of its secrets."""

from __future__ import annotations

import pytest

from r1v_export.cli.typed_command import command_line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["check", "out/my demo", "--questions", "8"], "r1v-export check 'out/my demo' --questions 8"),
        (["x", "--hub-token", "abc", "next"], "r1v-export x --hub-token '***' next"),
        (["x", "--api-key=abc"], "r1v-export x '--api-key=***'"),
        (["x", "--max-new-tokens", "64"], "r1v-export x --max-new-tokens 64"),
        (["x", "hf_" + "a" * 30], "r1v-export x 'hf_***'"),
        (
            ["check", "--image", "https://ann:word@example.org/a.png?signature=abc#def"],
            "r1v-export check --image 'https://***@example.org/a.png?***#***'",
        ),
        (["check", "--image=https://example.org/a.png"], "r1v-export check --image=https://example.org/a.png"),
        (["check", "--image", "data:image/png;base64,QUJD"], "r1v-export check --image 'data:image/png;base64,...'"),
        (["check", "two\nlines"], "r1v-export check 'two\\nlines'"),
    ],
)
def test_secrets_are_hidden_and_all_else_is_shown(arguments: list[str], line: str) -> None:
    assert command_line(arguments) == line


def test_a_long_line_is_cut() -> None:
    assert len(command_line(["check", "x" * 10_000])) == 2000
