import pytest
from PIL import Image

from u1_core.data.framing import Framing
from u1_core.errors import U1Error


def test_a_picture_is_covered_and_cut_evenly():
    frame = Framing(1024 * 1024, 32).frame(4000, 3200)
    assert frame.size == (1184, 864)  # 4:3 at that budget
    left, top, right, bottom = frame.box
    assert (left, right) == (0, 4000)
    assert (bottom - top) * 1184 == pytest.approx(4000 * 864)
    assert top == pytest.approx(3200 - bottom)
    assert frame.enlarged == pytest.approx(1184 / 4000)
    assert frame.lost == pytest.approx(1 - (bottom - top) / 3200)


def test_stretching_keeps_everything():
    frame = Framing(1024 * 1024, 32, fit="stretch").frame(4000, 3200)
    assert frame.size == (1184, 864)
    assert frame.box == (0, 0, 4000, 3200)
    assert frame.lost == 0


def test_what_is_smaller_is_enlarged_and_says_so():
    frame = Framing(1024 * 1024, 32).frame(512, 400)
    assert frame.size == (1184, 864)
    assert frame.enlarged == pytest.approx(1184 / 512)


@pytest.mark.parametrize("snap", [True, False])
@pytest.mark.parametrize("size", [(512, 400), (33, 1000), (1000, 33), (32, 32), (47, 95), (2047, 2047), (300, 700)])
def test_shrinking_the_bucket_never_enlarges(size, snap):
    frame = Framing(1024 * 1024, 32, snap=snap, upscale="shrink_bucket").frame(*size)
    assert frame.enlarged <= 1
    assert frame.size[0] % 32 == frame.size[1] % 32 == 0
    assert min(frame.size) >= 32


def test_shrinking_stays_close_to_what_the_picture_fills():
    frame = Framing(1024 * 1024, 32, upscale="shrink_bucket").frame(512, 400)
    assert frame.size == (512, 384)
    large = Framing(1024 * 1024, 32, upscale="shrink_bucket").frame(4000, 3200)
    assert large == Framing(1024 * 1024, 32).frame(4000, 3200)


def test_less_than_a_token_cannot_be_shrunk_to():
    with pytest.raises(U1Error, match="is 31x900 pixels, smaller than one token of 32x32"):
        Framing(1024 * 1024, 32, upscale="shrink_bucket").frame(31, 900)


def test_a_reduced_copy_is_cut_at_the_same_place():
    """A 100x50 picture whose middle half is white, and the same at a quarter of the size."""
    framing = Framing(64 * 64, 32)
    image = Image.new("L", (400, 200), 0)
    image.paste(255, (100, 0, 300, 200))
    frame = framing.frame(400, 200)
    whole = frame.cut(image, Image.Resampling.BOX)
    reduced = frame.cut(image.reduce(4), Image.Resampling.BOX)
    assert whole.size == reduced.size == frame.size
    difference = [abs(a - b) for a, b in zip(whole.tobytes(), reduced.tobytes(), strict=True)]
    assert sum(difference) / len(difference) < 2
