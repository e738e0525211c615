from __future__ import annotations

import pytest
import torch

from r1v_export.quantization.kv_scales import OUTLIER_RATIO, CacheType, kv_scales

LAYER = "language_model.model.layers.63"


def test_the_largest_key_and_value_are_the_largest_quantized_values() -> None:
    found = kv_scales(LAYER, "fp8", torch.tensor([1.0, 8.96, 2.0]), torch.tensor([0.1, 0.2, 4.48]))
    assert (found.key, found.value) == pytest.approx((0.02, 0.01))


def test_keys_and_values_of_an_int8_cache_share_the_scale_of_the_larger() -> None:
    for key, value in ((2.54, 1.27), (1.27, 2.54)):
        found = kv_scales(LAYER, "int8", torch.tensor([0.5, key]), torch.tensor([value, 0.5]))
        assert (found.kind, found.key, found.value) == ("int8", found.value, pytest.approx(2.54 / 127))
        assert found.warning is None


def test_what_one_scale_leaves_few_quantized_values_is_warned_about() -> None:
    keys, values = torch.full((8,), 100.0), torch.full((8,), 2.0)
    warning = kv_scales(LAYER, "int8", keys, values).warning
    assert warning is not None
    assert f"Keys of {LAYER} reach 100, values 2, and an INT8 cache has one scale" in warning
    assert kv_scales(LAYER, "fp8", keys, values).warning is None


def test_keys_with_an_outlier_channel_are_warned_about() -> None:
    key_absmax = torch.full((256,), 4.0)
    assert kv_scales(LAYER, "fp8", key_absmax, key_absmax).warning is None
    key_absmax[130] = 4.0 * OUTLIER_RATIO * 1.5
    warning = kv_scales(LAYER, "fp8", key_absmax, torch.ones(256)).warning
    assert warning is not None
    assert LAYER in warning
    assert "channel 130, 24 times the median" in warning


def test_large_values_are_not_warned_about() -> None:
    value_absmax = torch.ones(256)
    value_absmax[0] = 1000
    assert kv_scales(LAYER, "fp8", torch.ones(256), value_absmax).warning is None


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_an_all_zero_cache_has_usable_scales(kind: CacheType) -> None:
    found = kv_scales(LAYER, kind, torch.zeros(8), torch.zeros(8))
    assert (found.key, found.value, found.warning) == (1.0, 1.0, None)
