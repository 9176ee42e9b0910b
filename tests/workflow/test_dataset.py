"""Pictures and captions as nodes hand them on, and the prefixes built from them."""

import pytest
import torch
from PIL import Image

from u1_core.errors import U1Error
from u1_core.workflow.dataset import dataset, prefix_cache
from u1_core.workflow.loras import load_model
from u1_core.workflow.studio import Places, Studio, Watch
from u1_core.workflow.training import train_style_lora


@pytest.fixture
def studio(tmp_path) -> Studio:
    torch.set_num_threads(1)
    places = Places((tmp_path / "models",), (tmp_path / "loras",), tmp_path / "out", tmp_path / "cache", tmp_path)
    return Studio(places, "cpu")


def test_pictures_of_a_workflow_become_a_folder_that_is_the_same_each_time(studio):
    images = torch.stack([torch.full((64, 64, 3), level) for level in (0.25, 0.75)])
    first = dataset(studio, Watch(), images=images, captions="a dark wall\n\na light wall\n")
    again = dataset(studio, Watch(), images=images, captions="a dark wall\na light wall")
    assert first.values[0] == again.values[0]
    (folder,) = (studio.places.cache / "pictures").iterdir()
    assert {path.name for path in folder.iterdir()} == {"0000.png", "0000.txt", "0001.png", "0001.txt"}
    with Image.open(folder / "0001.png") as picture:
        assert picture.getpixel((3, 3)) == (191, 191, 191)
    with pytest.raises(U1Error, match="captions has 1 lines for 2 pictures; give one a line"):
        dataset(studio, Watch(), images=images, captions="one")
    with pytest.raises(U1Error, match="folder is empty and no images are connected"):
        dataset(studio, Watch())


def test_prefixes_are_built_once_and_their_preview_prompts_go_to_runs_that_have_none(studio):
    images = torch.stack([torch.full((64, 64, 3), level) for level in (0.25, 0.75)])
    pictures = dataset(studio, Watch(), images=images, captions="a dark wall\na light wall").values[0]
    model = load_model(studio, Watch(), model="built-in tiny U1").values[0]

    def cancelled() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        prefix_cache(studio, Watch(on_progress=lambda done, total: cancelled()), model=model, dataset=pictures)
    assert not list(studio.places.cache.glob("prefixes/*"))
    seen = []
    watch = Watch(on_progress=lambda done, total: seen.append((done, total)))
    built = prefix_cache(studio, watch, model=model, dataset=pictures, preview_prompts="a wall\n\na long, long wall")
    layers = studio.session(model).config.layers
    assert seen[-layers:] == [(2 * layer, 2 * layers) for layer in range(1, layers + 1)]
    about = built.text.splitlines()
    assert about[0].startswith("2 captions of ")
    assert "new files in" in about[1]
    assert about[2].startswith("2 preview prompts of ")
    again = prefix_cache(studio, Watch(), model=model, dataset=pictures)
    assert again.text.splitlines()[1] == f"all found in {studio.places.cache / 'prefixes'}"
    inputs = {"model": model, "dataset": pictures, "prefixes": built.values[0], "steps": 1, "wait": True}
    inputs |= {"train_heads": False, "validate_every": 0, "preview_every": 0}
    train_style_lora(studio, Watch(), name="handed", **inputs)
    recipe = (studio.runs.folder("handed") / "recipe.yaml").read_text(encoding="utf-8")
    assert "- a wall\n" in recipe
    assert "- a long, long wall\n" in recipe
    train_style_lora(studio, Watch(), name="own", **inputs, preview_prompts="something else")
    assert "a long, long wall" not in (studio.runs.folder("own") / "recipe.yaml").read_text(encoding="utf-8")
