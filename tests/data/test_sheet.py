import numpy as np
from PIL import Image, ImageColor

from u1_core.data.dataset import open_dataset
from u1_core.data.framing import Framing
from u1_core.data.picture_cache import training_pictures
from u1_core.data.sheet import COLUMNS, CUT, GAP, LINE, SIDE, contact_sheet

TOP = LINE + 2 * GAP


def sheet_of(source, masks="none"):
    dataset, framing = open_dataset(source), Framing(64 * 64, 8)
    pictures = training_pictures(dataset, framing, masks, workers=2)
    return np.asarray(contact_sheet(dataset, pictures, framing, range(len(dataset))), dtype=int)


def test_a_row_for_every_three_pictures(style):
    sheet = sheet_of(style)
    assert sheet.shape[1] == COLUMNS * (2 * SIDE + 3 * GAP) + GAP
    one_row = sheet.shape[0]
    for name in "def":
        (style / f"{name}.png").unlink()
    assert one_row - sheet_of(style).shape[0] == SIDE + 3 * LINE + 2 * GAP


def test_what_is_cut_off_is_dimmed_and_framed_and_absent_on_the_right(make, tmp_path):
    """A white picture six times as wide as high, with black ends: the kept middle part is all white."""
    image = Image.new("RGB", (1200, 200), "white")
    for left in (0, 1000):
        image.paste("lime", (left, 0, left + 200, 200))
    make.put(tmp_path / "x", "wide.png", "a wide one", image)
    sheet = sheet_of(tmp_path / "x")
    middle = TOP + SIDE // 2
    row = sheet[middle, GAP : GAP + SIDE]
    assert row[5, 1] < 100  # the lime end, dimmed
    assert row[45].max() < 100  # white, but outside
    assert row[SIDE // 2].tolist() == [255, 255, 255]
    edges = np.flatnonzero((row == ImageColor.getrgb(CUT)).all(axis=1))
    kept = edges.max() - edges.min() + 1
    assert abs(kept - SIDE * 104 / 32 * 200 / 1200) <= 2
    right = sheet[middle, 2 * GAP + SIDE : 2 * GAP + 2 * SIDE]
    assert set(map(tuple, right[70:-70].tolist())) == {(255, 255, 255)}


def test_what_a_mask_leaves_out_is_tinted(make, tmp_path):
    make.put(tmp_path / "x", "a.png", "a grey one", Image.new("RGB", (64, 64), "#808080"))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    make.put(tmp_path / "x", "a.mask.png", None, mask)
    row = sheet_of(tmp_path / "x", "file")[TOP + SIDE // 2, 2 * GAP + SIDE :][88:152]
    assert row[5, 0] > row[5, 1] + 60
    assert row[60].tolist() == [128, 128, 128]


def test_a_broken_picture_has_its_place(make, style):
    (style / "a.png").write_bytes(b"no")
    sheet = sheet_of(style)
    assert sheet[TOP + 100, GAP + 100].tolist() == list(ImageColor.getrgb(CUT))
