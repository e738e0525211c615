"""Precisions within a budget: never above it, and as good as trying everything where that can be tried."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1v_export.errors import UsageError
from r1v_export.quantization.mixed_precision.budget import Budget, choose, loss_of
from r1v_export.quantization.mixed_precision.sensitivity import FLOAT, Candidate, SensitivityTable

FIXED = 1000


def table(options: list[Candidate]) -> SensitivityTable:
    return SensitivityTable(checkpoint="c", samples=1, fixed_bytes=FIXED, options=tuple(options))


def module(name: str, size: int, fp8: float | None, int4: float | None, snr: float = 20.0) -> list[Candidate]:
    measured = ((FLOAT, 16, 0.0 if fp8 is not None else None), ("fp8", 8, fp8), ("int4", 4, int4))
    return [
        Candidate(module=name, precision=precision, size_bytes=size * bits, snr_db=snr * bits / 8, kl=kl)
        for precision, bits, kl in measured
    ]


@st.composite
def tables(draw: st.DrawFn, most_modules: int = 5) -> SensitivityTable:
    losses = st.floats(0, 1, allow_subnormal=False)
    options: list[Candidate] = []
    for index in range(draw(st.integers(1, most_modules))):
        options += module(f"m{index}", draw(st.integers(1, 50)), draw(losses), draw(losses))
    return table(options)


def every_choice(of: SensitivityTable) -> Iterator[tuple[int, float]]:
    """Size and loss of every combination."""
    names = dict.fromkeys(option.module for option in of.options)
    for chosen in product(*([o for o in of.options if o.module == name] for name in names)):
        yield FIXED + sum(o.size_bytes for o in chosen), sum(map(loss_of, chosen))


@settings(deadline=None)
@given(tables(), st.floats(1e-6, 4))
def test_a_budget_of_divergence_is_kept_and_bytes_are_saved(of: SensitivityTable, limit: float) -> None:
    choice = choose(of, Budget("kl", limit))
    assert choice.loss <= limit + 1e-9
    best = min(size for size, loss in every_choice(of) if loss <= limit)
    largest_step = max(o.size_bytes for o in of.options)
    # Greedy along the hull is off by less than one module.
    assert choice.size_bytes <= best + largest_step


@settings(deadline=None)
@given(tables(), st.integers(FIXED, FIXED + 5 * 50 * 16))
def test_a_budget_of_size_is_kept_or_refused(of: SensitivityTable, limit: int) -> None:
    fitting = [loss for size, loss in every_choice(of) if size <= limit]
    if not fitting:
        with pytest.raises(UsageError, match="smaller than the model"):
            choose(of, Budget("size", limit))
        return
    choice = choose(of, Budget("size", limit))
    assert choice.size_bytes <= limit
    assert choice.loss <= min(fitting) + max(map(loss_of, of.options)) + 1e-9


@settings(deadline=None)
@given(tables(), st.floats(1e-3, 2))
def test_what_is_predicted_is_what_was_chosen(of: SensitivityTable, limit: float) -> None:
    choice = choose(of, Budget("kl", limit))
    chosen = [o for o in of.options if choice.precisions[o.module] == o.precision]
    assert len(chosen) == len({o.module for o in of.options})
    assert choice.size_bytes == FIXED + sum(o.size_bytes for o in chosen)
    assert choice.loss == pytest.approx(sum(map(loss_of, chosen)))


def test_the_least_sensitive_module_gives_way_first() -> None:
    of = table([*module("fragile", 10, 0.5, 0.9), *module("robust", 10, 0.001, 0.01)])
    assert choose(of, Budget("kl", 0.1)).precisions == {"fragile": FLOAT, "robust": "int4"}
    assert choose(of, Budget("size", FIXED + 10 * 16 + 10 * 8)).precisions == {"fragile": FLOAT, "robust": "fp8"}


def test_a_large_module_gives_way_before_a_small_one_of_equal_loss() -> None:
    of = table([*module("small", 1, 0.05, 0.2), *module("large", 100, 0.05, 0.2)])
    assert choose(of, Budget("kl", 0.06)).precisions == {"small": FLOAT, "large": "fp8"}


def test_an_option_that_is_larger_and_worse_than_another_is_never_chosen() -> None:
    of = table(module("m", 10, 0.3, 0.1))
    assert choose(of, Budget("kl", 0.35)).precisions == {"m": "int4"}


def test_a_quantized_module_that_loses_nothing_is_taken_for_any_budget() -> None:
    of = table(module("m", 10, 0.0, 0.5))
    assert choose(of, Budget("kl", 1e-9)).precisions == {"m": "fp8"}


def test_without_divergences_the_noisiest_module_keeps_its_bits() -> None:
    of = table([*module("noisy", 10, None, None, snr=5.0), *module("clean", 10, None, None, snr=40.0)])
    assert choose(of, Budget("size", FIXED + 10 * 16 + 10 * 4)).precisions == {"noisy": FLOAT, "clean": "int4"}
    with pytest.raises(UsageError, match="needs a table with divergences"):
        choose(of, Budget("kl", 0.1))


@pytest.mark.parametrize(
    ("text", "kind", "limit"),
    [
        ("kl=0.02", "kl", 0.02),
        ("kl=1e-3", "kl", 0.001),
        ("size=20GB", "size", 20e9),
        ("size=1.5MiB", "size", 1.5 * 2**20),
        ("size=123B", "size", 123),
    ],
)
def test_budgets_are_read(text: str, kind: str, limit: float) -> None:
    assert Budget.parse(text) == Budget(kind, limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "20GB", "kl=0", "kl=-1", "kl=2GB", "size=20 gb", "size=20XB", "speed=3", "kl=nan", "size=0B", "size="]
)
def test_a_budget_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"[Bb]udget"):
        Budget.parse(text)


@pytest.mark.parametrize(("text", "meant"), [("size=20", "20GB for gigabytes"), ("size=7000000", "7000000B for bytes")])
def test_a_size_without_a_unit_is_refused_with_what_was_probably_meant(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match="has no unit") as caught:
        Budget.parse(text)
    assert caught.value.fix == f"write {meant}"
