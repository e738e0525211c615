"""A bundle is opened by what its files say, and before anything of it runs."""

from __future__ import annotations

import json
from pathlib import Path

from r1v_export.pipeline.open_runner import open_runner


def test_grounding_lets_through_what_the_bundle_lists(nano_bundle: Path) -> None:
    pipeline = json.loads((nano_bundle / "pipeline.json").read_text(encoding="utf-8"))
    listed = {piece["token"]: piece["id"] for piece in pipeline["prompt"]["grounding_tokens"]}
    ids = [listed["<ref>"], listed["</ref>"]]
    grounded, plain = open_runner(nano_bundle, grounding=True).tokenizer, open_runner(nano_bundle).tokenizer
    assert grounded.grounding_tokens == tuple(listed)
    assert grounded.decode(ids) == "<ref></ref>"
    assert plain.grounding_tokens == ()
    assert plain.decode(ids) == ""
