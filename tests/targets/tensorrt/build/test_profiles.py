"""Ranges of shapes, and those that are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from r1v_export.errors import UsageError
from r1v_export.targets.tensorrt.build.profiles import Range, decoder_profiles, profile_for, shapes, tile_profiles
from r1v_export.targets.tensorrt.config import TensorRTConfig


def test_a_image_of_any_number_of_tiles_has_a_profile_and_the_narrowest_one_is_taken() -> None:
    profiles = tile_profiles(TensorRTConfig())
    assert [profile_for(profiles, {"tiles": tiles}) for tiles in (1, 2, 4, 5, 13, 14, 26)] == [0, 1, 1, 2, 3, 4, 4]
    assert profile_for(profiles, {"tiles": 27}) is None


def test_one_token_of_each_row_takes_the_decode_profile_and_a_cache_ends_where_positions_do() -> None:
    profiles = decoder_profiles(TensorRTConfig(max_batch=4, decode_profile=True), max_positions=1024)
    assert profile_for(profiles, {"batch": 3, "seq": 1, "logit_positions": 1}) == 1
    assert profile_for(profiles, {"batch": 3, "seq": 2, "logit_positions": 1}) == 0
    assert profiles[0]["seq"].max == 1024


def test_one_profile_takes_steps_of_any_length_unless_decoding_is_to_have_its_own() -> None:
    (profile,) = decoder_profiles(TensorRTConfig(max_prefill=512), max_positions=1024)
    for batch, seq in ((1, 1), (4, 512)):
        assert profile_for([profile], {"batch": batch, "seq": seq, "logit_positions": 1}) == 0


@pytest.mark.parametrize("tiles", [[], [[2, 4]], [[1, 2], [4, 5]], [[1, 4], [3, 6]], [[1, 3], [4, 2]]])
def test_tile_profiles_with_a_gap_or_an_overlap_are_refused(tiles: list[list[int]]) -> None:
    with pytest.raises(ValidationError, match="tile profile"):
        TensorRTConfig.model_validate({"tile_profiles": tiles})


def test_shapes_mix_ranges_and_sizes() -> None:
    assert shapes({"tiles": Range(2, 3, 4)}, ("tiles", 3, 8), "x") == ((2, 3, 8), (3, 3, 8), (4, 3, 8))


@pytest.mark.parametrize(
    "profile", [{}, {"batch": Range(1, 1, 1)}, {"tiles": Range(3, 2, 4)}, {"tiles": Range(0, 1, 1)}]
)
def test_a_profile_outside_the_contract_names_the_dimension(profile) -> None:
    with pytest.raises(UsageError, match="tiles"):
        shapes(profile, ("tiles", 3), "vision: profile 0, pixel_values")
