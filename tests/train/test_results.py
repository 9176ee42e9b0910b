import base64
import hashlib
import io
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import FULL_FILE, read_lora, write_full, write_lora
from u1_core.lora.plan import FINAL_NORM, plan_lora
from u1_core.train.recipe import Recipe, Style, Train
from u1_core.train.results import base_hashes, check_saved, result_metadata


@pytest.fixture
def adapter(tiny):
    config = tiny("u1").config
    made = Adapter.create(plan_lora(config, "attn=r2a4"), 0)
    made.full[FINAL_NORM] = torch.rand(config.width)
    return made


@pytest.fixture
def saved(adapter, tmp_path):
    write_full(tmp_path / "s.full.safetensors", adapter.full, "u1")
    write_lora(tmp_path / "s.safetensors", adapter, {FULL_FILE: "s.full.safetensors"})
    return tmp_path / "s.safetensors"


def test_what_was_written_is_compared_number_by_number(adapter, saved):
    check_saved(saved, adapter)
    path = next(iter(adapter.modules))
    with torch.no_grad():
        adapter.modules[path].up[0, 0] += 1e-7
    with pytest.raises(U1Error, match=rf"s\.safetensors: reads back differently .*\({path}\)"):
        check_saved(saved, adapter)
    with torch.no_grad():
        adapter.modules[path].up[0, 0] -= 1e-7
    adapter.full[FINAL_NORM][3] += 1e-3
    with pytest.raises(U1Error, match=rf"\({FINAL_NORM}\)"):
        check_saved(saved, adapter)


def test_something_missing_is_seen(adapter, saved):
    del adapter.modules[next(iter(adapter.modules))]
    with pytest.raises(U1Error, match=r"\(the names of its tensors\)"):
        check_saved(saved, adapter)


def test_the_base_is_known_by_what_the_manifest_tells(tmp_path):
    files = {"a.safetensors": {"bytes": 3, "sha256": "ab"}, "b.safetensors": {"bytes": 4, "sha256": None}}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"model": {"fingerprint": "12", "files": files}}), encoding="utf-8")
    assert base_hashes(path) == {"fingerprint": "12", "a.safetensors": "ab"}
    assert base_hashes(tmp_path / "none.json") == {}


def test_metadata_tells_model_trigger_steps_and_shows_a_picture(adapter, tmp_path):
    preview = tmp_path / "p.png"
    Image.new("RGB", (900, 600), "blue").save(preview)
    recipe = Recipe(run_name="ink", style=Style(trigger="ink wash"), train=Train(lr=2e-5, seed=9))
    hashes = {"b.safetensors": "22", "a.safetensors": "11"}
    found = result_metadata(recipe, 500, 12, "U1-8B", hashes, preview)
    assert found["modelspec.trigger_phrase"] == "ink wash"
    assert json.loads(found["ss_tag_frequency"]) == {"dataset": {"ink wash": 12}}
    assert json.loads(found["u1.base_hashes"]) == hashes
    assert found["ss_new_sd_model_hash"] == hashlib.sha256(b'["11", "22"]').hexdigest()
    assert [found[key] for key in ("ss_steps", "ss_learning_rate", "ss_seed", "ss_resolution", "u1.base_model")] == [
        "500",
        "2e-05",
        "9",
        "(2048, 2048)",
        "U1-8B",
    ]
    kind, _, data = found["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 171))
    assert result_metadata(recipe, 500, 12, "U1-8B", dict(reversed(hashes.items())), preview) == found
    bare = result_metadata(replace(recipe, style=Style()), 500, 12, "U1-8B", {})
    assert not {"modelspec.trigger_phrase", "modelspec.thumbnail", "u1.base_hashes"} & set(bare)
    write_lora(tmp_path / "x.safetensors", adapter, found)
    stored = read_lora(tmp_path / "x.safetensors").metadata
    assert found.items() <= stored.items()
    assert (stored["ss_network_dim"], stored["ss_network_alpha"], stored["modelspec.title"]) == ("2", "4", "x")
