from dataclasses import replace
from pathlib import Path

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import read_lora
from u1_core.lora.plan import plan_lora
from u1_core.train.recipe_file import load_recipe, parse_recipe
from u1_core.train.run_folder import RunFolder
from u1_core.weights.write import NoRoomError


@pytest.fixture
def adapter(tiny) -> Adapter:
    adapter = Adapter.create(plan_lora(tiny("u1").config, "attn=r4a2"), seed=1)
    for module in adapter.modules.values():
        torch.nn.init.normal_(module.up.data)
    adapter.full = {"fm_modules.fm_head.2.bias": torch.randn(192).requires_grad_()}
    return adapter


def test_it_opens_with_the_recipe_and_is_never_made_twice(recipe):
    folder = RunFolder.create(recipe)
    assert load_recipe(folder.path / "recipe.yaml") == recipe
    with pytest.raises(U1Error, match=r"runs.tiny: there is a run of this name already; choose another run_name"):
        RunFolder.create(recipe)
    assert RunFolder.create(replace(recipe, run_name="other")).path == folder.path.with_name("other")


def test_a_folder_that_cannot_be_made_is_named(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(U1Error, match=r"file.tiny: cannot be made"):
        RunFolder.create(replace(recipe, runtime=replace(recipe.runtime, out_dir=str(tmp_path / "file"))))


def test_a_disk_that_does_not_take_the_recipe_is_left_without_a_folder(recipe, full_disk):
    full_disk("recipe.yaml")
    with pytest.raises(NoRoomError, match=r"recipe\.yaml: cannot be written \(No space left on device\)"):
        RunFolder.create(recipe)
    assert not Path(recipe.runtime.out_dir, "tiny").exists()


def test_checkpoints_and_results_load_back_the_same(recipe, adapter, tmp_path):
    upstream = replace(recipe.runtime, upstream_lora_path=str(tmp_path / "8step.safetensors"))
    folder = RunFolder.create(replace(recipe, runtime=upstream))
    checkpoint, results = folder.save_checkpoint(adapter, 600), folder.save_results(adapter, 6000, pictures=5)
    assert checkpoint.lora == folder.path / "checkpoints" / "step_000600.safetensors"
    assert checkpoint.full == folder.path / "checkpoints" / "step_000600.full.safetensors"
    assert results.loadable == results.lora == folder.path / "tiny.safetensors"
    for saved, step in ((checkpoint, "600"), (results, "6000")):
        found = read_lora(saved.lora)
        assert (found.metadata["u1.step"], found.metadata["modelspec.trigger_phrase"]) == (step, "sty")
        inside = parse_recipe(found.metadata["u1.recipe"], "x")
        assert (inside.style, inside.lora, inside.train) == (recipe.style, recipe.lora, recipe.train)
        assert str(tmp_path) not in str(found.metadata)
        for path, module in adapter.modules.items():
            assert torch.equal(found.adapter.modules[path].up, module.up)
            assert torch.equal(found.adapter.modules[path].down, module.down)
            assert found.adapter.modules[path].alpha == 2
        assert torch.equal(found.adapter.full["fm_modules.fm_head.2.bias"], adapter.full["fm_modules.fm_head.2.bias"])
    assert not list(folder.path.rglob("*.part"))


def test_what_was_not_trained_makes_no_file(recipe, adapter):
    folder = RunFolder.create(recipe)
    lora_only = folder.save_checkpoint(replace(adapter, full={}), 1)
    assert lora_only.full is None
    full_only = folder.save_checkpoint(replace(adapter, modules={}), 2)
    assert full_only.lora is None
    assert full_only.loadable.name == "step_000002.full.safetensors"
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["step_000001.safetensors", "step_000002.full.safetensors"]


def test_checkpoints_may_go_elsewhere(recipe, adapter, tmp_path, with_train):
    folder = RunFolder.create(with_train(recipe, checkpoint_dir=str(tmp_path / "elsewhere")))
    assert folder.save_checkpoint(adapter, 7).lora == tmp_path / "elsewhere" / "step_000007.safetensors"
    (tmp_path / "elsewhere" / "state_000007.safetensors").write_bytes(b"")
    with pytest.raises(U1Error, match=r"elsewhere: has checkpoints of another run already \(state_000007"):
        RunFolder.create(with_train(replace(recipe, run_name="other"), checkpoint_dir=str(tmp_path / "elsewhere")))


def test_checkpoints_may_go_home(recipe, with_train, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert RunFolder.create(with_train(recipe, checkpoint_dir="~/kept")).checkpoints == tmp_path / "kept"
