import math

import pytest

from u1_core.data.buckets import INTERLEAVE, TEXT_TO_IMAGE, bucket_for, bucket_sizes, cover_box, edit_size, parse_size
from u1_core.errors import U1Error


def test_the_official_sizes():
    assert sorted(TEXT_TO_IMAGE.values()) == [
        (1152, 3456),
        (1440, 2880),
        (1536, 2720),
        (1664, 2496),
        (1760, 2368),
        (2048, 2048),
        (2368, 1760),
        (2496, 1664),
        (2720, 1536),
        (2880, 1440),
        (3456, 1152),
    ]
    assert TEXT_TO_IMAGE["9:16"] == (1536, 2720)
    assert INTERLEAVE["1:3"] == (864, 2592)
    assert len(INTERLEAVE) == 11


def test_at_the_official_budget_the_sizes_are_the_official_ones():
    assert bucket_sizes(2048**2, 32) == TEXT_TO_IMAGE
    assert bucket_sizes(1536**2, 32, INTERLEAVE) == INTERLEAVE


@pytest.mark.parametrize(
    ("max_pixels", "token_pixels"), [(1024**2, 32), (768**2, 32), (512**2, 32), (64 * 48, 8), (96**2, 8), (256, 16)]
)
def test_at_any_budget_sizes_are_whole_tokens_within_it(max_pixels, token_pixels):
    for name, (width, height) in bucket_sizes(max_pixels, token_pixels).items():
        assert width % token_pixels == 0, name
        assert height % token_pixels == 0, name
        assert token_pixels**2 <= width * height <= max_pixels, name


def test_a_quarter_of_the_budget():
    sizes = bucket_sizes(1024**2, 32)
    assert sizes["1:1"] == (1024, 1024)
    assert sizes["3:2"] == (1248, 832)
    assert sizes["16:9"] == (1344, 768)
    assert sizes["1:3"] == (576, 1728)


def test_a_budget_of_less_than_a_token():
    with pytest.raises(U1Error, match="1000 pixels are too few: one token is 32x32 pixels"):
        bucket_sizes(1000, 32)


@pytest.mark.parametrize(
    ("width", "height", "bucket"),
    [
        (1000, 1000, "1:1"),
        (1920, 1080, "16:9"),
        (1080, 1920, "9:16"),
        (4032, 3024, "4:3"),
        (400, 600, "2:3"),
        (100, 1000, "1:3"),
        (1150, 1000, "1:1"),  # nearer to 1 than to 4:3 by the logarithm of the ratio
        (1160, 1000, "4:3"),
    ],
)
def test_the_nearest_bucket(width, height, bucket):
    assert bucket_for(width, height, 2048**2, 32) == TEXT_TO_IMAGE[bucket]


def test_the_nearest_bucket_of_a_tiny_model():
    assert bucket_for(640, 480, 64 * 48, 8) == (64, 48)
    assert bucket_for(500, 500, 64 * 48, 8) == (48, 48)


def test_an_edit_keeps_the_ratio_of_its_picture():
    assert edit_size(1000, 1000, 32, 2048**2) == (2048, 2048)
    assert edit_size(1920, 1080, 32, 2048**2) == (2752, 1536)  # the official rule rounds up from below
    assert edit_size(64, 48, 8, pixels=64 * 48) == (64, 48)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2048x1536", (2048, 1536)),
        (" 64 X 96 ", (64, 96)),
        ("16:9", (2720, 1536)),
        ("1:1@1MP", (1024, 1024)),
        ("3:2 @ 1mp", (1248, 832)),
        ("1:1@0.25MP", (512, 512)),
        ("1:1@4MP", (2048, 2048)),
    ],
)
def test_sizes_in_words(text, size):
    assert parse_size(text, 32) == size


def test_sizes_in_words_of_interleave():
    assert parse_size("16:9", 32, INTERLEAVE) == (2048, 1152)
    assert parse_size("1:1", 16, pixels=144 * 16**2) == (192, 192)
    assert parse_size("16:9@1MP", 32, INTERLEAVE) == (1344, 768)


def test_a_ratio_alone_is_at_the_models_own_size():
    assert parse_size("4:3", 8, pixels=64 * 48) == (64, 48)
    assert parse_size("1:1@1MP", 8, pixels=64 * 48) == (1024, 1024)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2000x1500", "size 2000x1500: both sides must be multiples of 32; the nearest is 1984x1504"),
        ("0x32", "size 0x32: both sides must be multiples of 32; the nearest is 32x32"),
        ("16:10", r"size '16:10' is neither WIDTHxHEIGHT nor a ratio the model knows \(.*\), alone or as in 1:1@1MP"),
        ("big", r"size 'big' is neither WIDTHxHEIGHT nor a ratio the model knows \(1:1, 16:9, 3:2, "),
        ("1:1@2048", "size '1:1@2048': after @ comes an area in megapixels, such as 1MP"),
        ("1:1@0MP", "size '1:1@0MP': after @ comes an area in megapixels"),
        ("1:1@0.0001MP", "105 pixels are too few: one token is 32x32 pixels"),
    ],
)
def test_sizes_that_are_none(text, message):
    with pytest.raises(U1Error, match=message):
        parse_size(text, 32)


def test_covering_keeps_the_middle_and_the_ratio():
    assert cover_box((90, 40), (60, 80)) == (30, 0, 60, 40)  # scaled by 2, then 60 of 180 columns
    assert cover_box((40, 90), (80, 60)) == (0, 30, 40, 60)
    assert cover_box((90, 40), (180, 80)) == (0, 0, 90, 40)


def test_ratios_survive_scaling():
    for name, (width, height) in bucket_sizes(1024**2, 32).items():
        official = TEXT_TO_IMAGE[name]
        assert abs(math.log(width * official[1] / (height * official[0]))) < 0.04, name
