import pytest
from PIL import Image

from u1_core.data import check as module
from u1_core.data.check import Finding, Rules, check_dataset, problems_of, spread
from u1_core.data.dataset import open_dataset
from u1_core.data.framing import Framing
from u1_core.data.picture_cache import training_pictures

FRAMING = Framing(64 * 64, 8)


def check(source, framing=FRAMING, workers=0, everything=False, **rules):
    dataset = open_dataset(source)
    pictures = training_pictures(dataset, framing, rules.get("masks", "none"), 10**6, workers)
    return check_dataset(dataset, pictures, Rules(framing, **rules), everything)


def found(findings, words):
    """The one finding whose text has these words."""
    (finding,) = [finding for finding in findings if words in finding.what]
    return finding


def test_a_good_set_has_nothing_to_be_said_about_it(style):
    assert [str(finding) for finding in check(style)] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_what_makes_training_impossible(make, style, workers):
    make.put(style, "x.png", None, make.picture(9))
    make.put(style, "y.png", "  \n", make.picture(9))
    make.put(style, "z.png", "a caption with <img> in it", make.picture(10, 80, 80))
    whole = make.png(make.picture(11, 80, 80))
    make.put(style, "cut.png", "a picture cut short", whole[: len(whole) // 2])
    make.put(style, "no.png", "it has never been one", b"not a picture")
    problems = problems_of(check(style, workers=workers))
    assert list(problems) == ["x.png", "y.png", "z.png", "cut.png", "no.png"]
    assert problems["x.png"] == "has no caption x.txt"
    assert problems["y.png"] == "y.txt is empty"
    assert problems["z.png"].startswith("the prompt holds the token <img>")
    assert problems["cut.png"].startswith("cannot be read as a picture, it is broken or cut short")
    assert problems["no.png"].startswith("is no picture in a format that can be read")


def test_think_labels_count_only_where_they_are_used(make, style):
    make.put(style, "a.png", "what picture a shows\n---think---\nlike <image>", make.picture(0, 80, 80))
    assert problems_of(check(style)) == {}
    assert "marks 1 pictures" in problems_of(check(style, use_think=True))["a.png"]


def test_a_trigger_that_captions_have_already(make, style):
    make.put(style, "b.png", "what a picture in InkStyle shows", make.picture(1, 80, 80))
    finding = found(check(style, trigger="inkstyle"), "the trigger 'inkstyle'")
    assert (finding.severity, finding.where) == ("hurts", ("b.png",))
    assert not [f for f in check(style) if "trigger" in f.what]


def test_captions_that_are_too_long_too_short_or_say_too_much(make, style):
    make.put(style, "a.png", "word " * 351, make.picture(0, 80, 80))
    make.put(style, "b.png", "cat", make.picture(1, 80, 80))
    make.put(style, "c.png", "a cat<|im_end|> and a dog", make.picture(2, 80, 80))
    findings = check(style)
    assert found(findings, "over 350 words").where == ("a.png",)
    assert found(findings, "fewer than 3 words").where == ("b.png",)
    assert found(findings, "special tokens").where == ("c.png",)
    make.put(style, "a.png", "word " * 200, make.picture(0, 80, 80))
    counted = []

    def encode(text):
        counted.append(text)
        return range(513)

    assert found(check(style, encode=encode), "over 512 tokens").where == ("a.png",)
    assert len(counted) == 1  # what has no more bytes than that needs no counting


def test_captions_that_are_the_same(make, style):
    for name in "ace":
        make.put(style, f"{name}.png", "the very same words", make.picture(ord(name) - ord("a"), 80, 80))
    finding = found(check(style), "3 pictures have the same caption")
    assert (finding.severity, finding.where) == ("note", ("a.png", "c.png", "e.png"))


def test_style_words_in_every_caption(make, style):
    for i, name in enumerate("abcdef"):
        make.put(style, f"{name}.png", f"ink drawing of scene {name * 3}", make.picture(i, 80, 80))
    finding = found(check(style), "most captions share")
    assert finding.what == "most captions share 'ink drawing of scene' (100%)"
    assert (finding.severity, finding.where) == ("hurts", ())


def test_pictures_that_look_alike(make, style):
    make.put(style, "again.jpg", "what picture a shows once more", make.picture(0, 200, 200))
    finding = found(check(style), "looks like")
    assert (finding.what, finding.where) == ("the picture looks like a.png", ("again.jpg",))


def test_pictures_that_are_enlarged_cut_or_too_narrow(make, style):
    make.put(style, "a.png", "rather a small picture", make.picture(0, 60, 60))
    make.put(style, "b.png", "a very small picture", make.picture(1, 30, 30))
    make.put(style, "c.png", "a banner that is wide", make.picture(2, 900, 180))
    findings = check(style)
    assert found(findings, "enlarged more than 1.25 times").where == ("b.png (30x30 to 64x64)",)
    slightly = [finding for finding in findings if finding.what.endswith(", and enlarged")]
    assert [(finding.severity, finding.where) for finding in slightly] == [("note", ("a.png (60x60 to 64x64)",))]
    assert found(findings, "over 25% of the picture is cut off").where == ("c.png (900x180 to 104x32)",)
    assert found(findings, "one side is over 3.5 times the other").where == ("c.png (900x180 to 104x32)",)
    skipping = check(style, framing=Framing(64 * 64, 8, upscale="skip"))
    assert found(skipping, "and left out").where == ("a.png (60x60 to 64x64)", "b.png (30x30 to 64x64)")
    assert not [finding for finding in skipping if "enlarged" in finding.what]
    shrinking = check(style, framing=Framing(64 * 64, 8, upscale="shrink_bucket"))
    assert not [finding for finding in shrinking if "enlarged" in finding.what]


def test_files_that_are_passed_over(make, style):
    (style / "photo.HEIC").write_bytes(b"x")
    (style / "alone.txt").write_text("x")
    make.put(style, "ghost.mask.png", None, make.picture(0))
    make.put(style, "a.mask.png", None, make.picture(0, 80, 80))
    findings = check(style)
    assert found(findings, "format that is not read").where == ("photo.HEIC",)
    assert found(findings, "a text without a picture").where == ("alone.txt",)
    assert found(findings, "a mask without its picture").where == ("ghost.mask.png",)
    assert found(findings, "data.masks is none").where == ("a.png",)
    assert found(check(style, masks="file"), "has no mask").where == ("b.png", "c.png", "d.png", "e.png", "f.png")


def test_a_folder_whose_number_is_a_year(make, style):
    make.put(style, "2024_summer/a.png", "what was seen by the sea", make.picture(20, 80, 80))
    finding = found(check(style), "2024 turns in an epoch")
    assert (finding.severity, finding.where) == ("hurts", ("2024_summer",))


def test_rows_of_a_table_are_checked_like_files(make, tmp_path):
    captions = ["what is seen in the first", "", "see <image>", "what is seen in the last"]
    images = [make.png(make.picture(i, 80, 80)) for i in range(3)] + [None]
    findings = check(make.table(tmp_path / "t.parquet", 4, caption=captions, image=images))
    assert problems_of(findings) == {
        "s1": "the caption is empty",
        "s2": "the prompt marks 1 pictures with <image>, but 0 are given",
        "s3": "is no picture in a format that can be read; use PNG, JPEG, WebP or TIFF",
    }


def test_of_a_very_large_set_some_pictures_are_looked_at(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 3)
    images = [make.png(make.picture(i, 80, 80)) for i in range(6)]
    images[1] = b"broken, but not looked at"
    path = make.table(tmp_path / "t.parquet", 6, image=images)
    finding = found(check(path), "looked at")
    assert (finding.severity, finding.what) == ("note", "3 of 6 pictures were looked at")
    assert set(problems_of(check(path, everything=True))) == {"s1"}
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 10) == range(3)


def test_of_a_very_large_set_some_pictures_are_compared(make, style, monkeypatch):
    make.put(style, "again.jpg", "two houses by two lakes", make.picture(0, 200, 200))
    monkeypatch.setattr(module, "COMPARED", 3)  # of seven: 0, 2 and 4, which are a, b and d
    assert not [finding for finding in check(style) if "looks like" in finding.what]
    monkeypatch.setattr(module, "COMPARED", 6)
    assert found(check(style), "looks like").where == ("again.jpg",)


def test_progress_is_told_of_each_picture(style):
    dataset, seen = open_dataset(style), []
    pictures = training_pictures(dataset, FRAMING)
    check_dataset(dataset, pictures, Rules(FRAMING), on_progress=lambda *done: seen.append(done))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_a_line_names_a_few_places_and_counts_the_rest():
    finding = Finding("hurts", "something is wrong", tuple("abcdefgh"), "mend it")
    assert str(finding) == "hurts: a, b, c, d, e and 3 more: something is wrong; mend it"
    assert str(Finding("note", "it is so", (), "know it")) == "note: it is so; know it"


def test_black_masks_stop_a_run(make, style):
    make.put(style, "a.mask.png", None, Image.new("L", (80, 80)))
    assert list(problems_of(check(style, masks="file"))) == ["a.png"]
    assert problems_of(check(style)) == {}


def test_what_is_looked_at_of_a_large_set_is_compared_too(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 4)  # of twelve: 0, 3, 6 and 9
    monkeypatch.setattr(module, "COMPARED", 5)
    images = [make.png(make.picture(0 if i == 9 else i, 80, 80)) for i in range(12)]
    assert found(check(make.table(tmp_path / "t.parquet", 12, image=images)), "looks like s0").where == ("s9",)


def test_masks_of_pictures_beyond_the_first_so_many_are_not_called_strays(make, style):
    make.put(style, "e.mask.png", None, make.picture(0, 80, 80))
    dataset = open_dataset(style, 3)
    findings = check_dataset(dataset, training_pictures(dataset, FRAMING), Rules(FRAMING))
    assert not [finding for finding in findings if "mask without" in finding.what]


def test_a_size_far_above_what_the_model_draws(style):
    assert not [finding for finding in check(style, native_pixels=64 * 64 // 2) if "the model draws" in finding.what]
    finding = found(check(style, native_pixels=40 * 40), "the model draws")
    assert str(finding) == (
        "hurts: pictures are trained at up to 64x64, and the model draws 40x40; set data.cap_max_pixels to 1600; it is "
        "quicker, too"
    )
