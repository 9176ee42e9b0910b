import hashlib
import json
from pathlib import Path

import pytest
import torch

from u1_core.data.dataset import open_dataset
from u1_core.train.file_hashes import FileHashes
from u1_core.train.manifest import Manifest, data_hashes, fingerprint


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hashes(tmp_path):
    return FileHashes(tmp_path / "hashes.json")


def test_pictures_captions_and_masks_are_hashed(recipe, hashes):
    folder = Path(recipe.data.data_dir)
    (folder / "0.mask.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "notes.md").write_text("of no concern")
    found = data_hashes(open_dataset(folder), hashes)
    assert found == {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != "notes.md"}
    assert len(found) == 11
    before = fingerprint(found)
    (folder / "3.txt").write_text("another caption")
    assert fingerprint(data_hashes(open_dataset(folder), hashes)) != before


def test_a_run_tells_what_it_was_made_with_and_from(session, recipe, run, models):
    folder = run(session, recipe).result.folder
    facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["hardware"]["threads"] == 1
    assert facts["model"]["kind"] == "u1"
    weights = sorted(models["u1"].glob("*.safetensors"))
    assert facts["model"]["files"] == {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in weights
    }
    assert facts["optimizer"] == "adamw"
    assert facts["data"]["files"]["0.txt"] == sha256(Path(recipe.data.data_dir) / "0.txt")


def test_hashing_goes_on_beside_the_run_and_is_waited_for_at_its_end(session, tmp_path, hashes, monkeypatch):
    before = []
    of = hashes.of
    monkeypatch.setattr(hashes, "of", lambda path: before.append(path) or of(path))
    manifest = Manifest(tmp_path / "manifest.json", session, hashes, {"a.png": "12"}, "adamw")
    manifest.finish()
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert [path.name for path in before] == list(facts["model"]["files"])
    assert all(len(file["sha256"]) == 64 for file in facts["model"]["files"].values())


def test_a_model_file_that_cannot_be_read_says_so(session, tmp_path, hashes, monkeypatch):
    monkeypatch.setattr(hashes, "of", lambda path: FileHashes.of(hashes, path.with_name("gone")))
    manifest = Manifest(tmp_path / "manifest.json", session, hashes, {}, "adamw")
    manifest.finish()
    (file,) = json.loads((tmp_path / "manifest.json").read_text())["model"]["files"].values()
    assert file["sha256"] is None
    assert "gone: cannot be read (No such file" in file["not_hashed"]
