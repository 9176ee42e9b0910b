"""What a model's node tells of it, and what it refuses."""

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.plan.budget import GIB, Budget
from u1_core.released import released_config
from u1_core.workflow.handles import LoraUse, Model
from u1_core.workflow.loras import export_lora, load_model, planned, stack_8step
from u1_core.workflow.studio import NANO, NANO_8STEP, Places, Studio, Watch


@pytest.fixture
def studio(tmp_path) -> Studio:
    places = Places((tmp_path / "models",), (tmp_path / "loras",), tmp_path / "out", tmp_path / "cache", tmp_path)
    return Studio(places, "cpu")


def test_the_plan_for_a_picture_is_told_before_anything_is_loaded():
    config = released_config("U1-8B")
    full = planned(config, torch.bfloat16, Budget.parse("full"), 30 * GIB)
    assert full.startswith("budget full: 42 of 42 layers stay on the card, 1")
    assert full.endswith(" GiB at 2048x2048")
    assert planned(config, torch.bfloat16, Budget.parse("low"), 30 * GIB).startswith("budget low: 0 of 42 layers stay")
    with pytest.raises(U1Error, match=r"budget 1\.00 GiB: 1\.00 GiB may be taken on the card and at least"):
        planned(config, torch.bfloat16, Budget.parse("1GiB"), 30 * GIB)


def test_a_budget_is_for_a_card(studio):
    with pytest.raises(U1Error, match=r"budget 12\.00 GiB: it is for a card's memory"):
        load_model(studio, Watch(), model=NANO, budget="12GiB")
    with pytest.raises(U1Error, match="did you mean 'auto'"):
        load_model(studio, Watch(), model=NANO, budget="atuo")


def test_gguf_files_are_found_in_the_models_folders(studio):
    folder = studio.places.models[0] / "u1"
    folder.mkdir(parents=True)
    (folder / "q4.gguf").write_bytes(b"")
    assert studio.gguf_names() == ["u1/q4.gguf"]
    with pytest.raises(U1Error, match=r"q4\.gguf"):
        load_model(studio, Watch(), model=NANO, gguf="u1/q4.gguf")
    with pytest.raises(U1Error, match=r"there is no file 'u1/q5\.gguf' in .*; did you mean 'u1/q4\.gguf'"):
        load_model(studio, Watch(), model=NANO, gguf="u1/q5.gguf")


def test_loras_behind_links_are_found_and_links_back_are_not_followed(studio, tmp_path):
    folder = studio.places.loras[0]
    for path in (folder / "own.safetensors", tmp_path / "elsewhere" / "deep" / "far.safetensors"):
        path.parent.mkdir(parents=True)
        path.touch()
    (folder / "own.full.safetensors").touch()
    (folder / "linked.safetensors").symlink_to(tmp_path / "elsewhere" / "deep" / "far.safetensors")
    (folder / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (folder / "shelf").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(folder, target_is_directory=True)
    listed = ["linked.safetensors", "own.safetensors", "shelf/deep/far.safetensors", NANO_8STEP]
    assert studio.lora_names() == listed
    for name in listed:
        assert studio.find_lora(name).is_file()
    for name in ("../elsewhere/deep/far.safetensors", "gone.safetensors", "shelf/../own.safetensors"):
        with pytest.raises(U1Error, match="there is no LoRA"):
            studio.find_lora(name)


def test_the_8_step_lora_goes_into_the_weights_and_out_again(studio):
    model: Model = load_model(studio, Watch(), model=NANO).values[0]
    folded = stack_8step(studio, Watch(), model=model, lora=NANO_8STEP, folded=True)
    assert folded.text.endswith("x1, in the weights")
    with studio.using(model, Watch()) as session:
        own = session.base_generation.layers[0].qkv.clone()
    with studio.using(folded.values[0], Watch()) as same:
        assert same is session
        assert not session.base_generation.layers[0].qkv.equal(own)
        assert session.adapters == []
    with studio.using(model, Watch()):
        assert session.base_generation.layers[0].qkv.equal(own)


@pytest.mark.parametrize("name", ["", "con", "end ", "a/b", "..", "x" * 201])
def test_an_exported_lora_is_named_as_a_run_may_be(studio, name):
    model: Model = load_model(studio, Watch(), model=NANO).values[0]
    model = model.with_lora(LoraUse(str(studio.find_lora(NANO_8STEP))))
    with pytest.raises(U1Error, match=r"^name is .*; allowed: a plain folder name of at most 200 bytes"):
        export_lora(studio, Watch(), model=model, name=name)


def test_while_a_run_trains_on_the_weights_the_lora_stays_beside_them(studio, monkeypatch):
    model: Model = load_model(studio, Watch(), model=NANO).values[0]
    stacked = model.with_lora(LoraUse(str(studio.find_lora(NANO_8STEP)), folded=True))
    monkeypatch.setattr(studio.runs, "sessions", lambda: [studio.session(model)])
    with studio.using(stacked, Watch()) as session:
        assert session.folded == ()
        assert len(session.adapters) == 1
