"""What the node of captions takes, and what it refuses."""

import pytest
import torch
from PIL import Image

from u1_core.errors import U1Error
from u1_core.workflow.drawing import caption_folder
from u1_core.workflow.loras import load_model
from u1_core.workflow.studio import Places, Studio, Watch


@pytest.fixture
def studio(tmp_path) -> Studio:
    torch.set_num_threads(1)
    folders = [tmp_path / name for name in ("models", "loras", "out", "cache", "input")]
    return Studio(Places((folders[0],), (folders[1],), *folders[2:]), "cpu")


def picture(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(path)


def test_pictures_without_a_caption_get_one_and_captions_that_are_there_stay(studio):
    folder = studio.places.input / "walls"
    picture(folder / "new.png")
    picture(folder / "deeper" / "old.png")
    (folder / "deeper" / "old.txt").write_text("mine", encoding="utf-8")
    picture(folder / "new.mask.png")
    picture(folder / ".trash" / "thrown away.png")
    model = load_model(studio, Watch(), model="built-in tiny U1").values[0]
    given = caption_folder(studio, Watch(), model=model, folder="walls", max_tokens=4)
    assert given.values[0] == str(folder)
    assert given.text.startswith("2 pictures, 1 without a caption\nnew.png: ")
    assert (folder / "deeper" / "old.txt").read_text(encoding="utf-8") == "mine"


def test_pictures_are_looked_for_in_a_folder_that_is_there_and_nowhere_else(studio, tmp_path, monkeypatch):
    picture(tmp_path / "somebody" / "holiday.png")
    (studio.places.input / "bare").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for folder, message in (
        ("", "folder is empty; give a folder of pictures"),
        (" ", "folder is empty; give a folder of pictures"),
        ("wals", "wals: there is no such folder; give a folder of pictures"),
        ("somebody/holiday.png", "there is no such folder"),
        ("bare", r"bare: holds no pictures \(\.jpg"),
    ):
        with pytest.raises(U1Error, match=message):
            caption_folder(studio, Watch(), model=None, folder=folder)
