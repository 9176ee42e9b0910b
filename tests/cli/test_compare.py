import json

import numpy as np
import pytest
import torch
from PIL import Image

from u1_core.cli.compare import parse_steps
from u1_core.cli.main import main
from u1_core.data.pictures import to_images
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import read_lora, write_lora
from u1_core.lora.plan import plan_lora
from u1_core.sample.compare import GAP, LABEL_WIDTH, columns_for
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session


@pytest.fixture
def loras(models, tmp_path):
    """Two LoRAs that change much."""
    config = Session.open(models["u1"], "cpu").config
    paths = []
    for seed, name in enumerate(("first", "second")):
        adapter = Adapter.create(plan_lora(config, "attn=r4"), seed)
        for module in adapter.modules.values():
            torch.nn.init.normal_(module.up.data, std=0.5, generator=torch.Generator().manual_seed(seed))
        paths.append(tmp_path / f"{name}.safetensors")
        write_lora(paths[-1], adapter)
    return paths


def test_every_cell_is_what_the_sampler_draws(models, loras, tmp_path, capsys):
    first, second = loras
    out = tmp_path / "sheet.png"
    command = ["compare", "--model", str(models["u1"]), "--device", "cpu", "--size", "64x48", "--steps", "2,20"]
    command += ["--lora", f"{first}:0.5", "--upstream", str(second), "--prompt", "a red house", "--prompt", "a cat"]
    assert main([*command, "--seed", "3", "--cfg", "2", "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["files"], facts["steps"], facts["prompts"]) == ([str(out)], [2, 20], ["a red house", "a cat"])
    sheet = np.asarray(Image.open(out))
    session = Session.open(models["u1"], "cpu")
    found = []
    for prompt in ("a red house", "a cat"):
        for lora in (None, first):
            for steps in (2, 20):
                adapters = [read_lora(second).adapter] if steps == 2 else []
                if lora:
                    adapters.append(read_lora(lora).adapter)
                    adapters[-1].strength = 0.5
                session.use(adapters)
                guidance = Guidance(1.0 if steps == 2 else 2.0)
                settings = SampleSettings(64, 48, steps, seed=3, guidance=guidance)
                (image,) = to_images(text_to_image(session, prompt, settings).pictures)
                found.append(np.asarray(image))
    left = LABEL_WIDTH + 2 * GAP
    tops = [y for y in range(sheet.shape[0] - 48) if np.array_equal(sheet[y : y + 48, left : left + 64], found[0])]
    assert len(tops) == 1
    places = [(y, left + column * (64 + GAP)) for y in row_tops(sheet, left) for column in (0, 1)]
    assert len(places) == 8
    for (y, x), picture in zip(places, found, strict=True):
        assert np.array_equal(sheet[y : y + 48, x : x + 64], picture)
    assert len({picture.tobytes() for picture in found}) == 8


def row_tops(sheet, left):
    """Where rows of pictures begin: no paper is left from there on for 48 lines."""
    filled = (sheet[:, left : left + 64] != sheet[0, 0]).any(axis=2).all(axis=1)
    starts = np.flatnonzero(filled & ~np.roll(filled, 1))
    return [int(y) for y in starts if filled[y : y + 48].all()]


def test_cells_are_no_larger_than_the_model_draws(models, tmp_path):
    out = tmp_path / "sheet.png"
    command = ["compare", "--model", str(models["u1"]), "--device", "cpu", "--steps", "1", "--cfg", "1"]
    assert main([*command, "--prompt", "a cat", "--out", str(out)]) == 0
    side = int(Session.open(models["u1"], "cpu").config.native_pixels ** 0.5)
    assert side < 1024
    assert Image.open(out).width < LABEL_WIDTH + 2 * side


def test_few_steps_take_the_upstream_lora_without_guidance():
    upstream = Adapter({}, name="8step.safetensors")
    columns = columns_for(SampleSettings(guidance=Guidance(4.0)), [8, 50], upstream)
    assert [column.label for column in columns] == ["8 steps, cfg 1\n8step.safetensors", "50 steps, cfg 4"]
    assert [(c.settings.steps, c.settings.guidance.cfg_scale) for c in columns] == [(8, 1.0), (50, 4.0)]
    assert [column.upstream for column in columns] == [(upstream,), ()]
    (alone,) = columns_for(SampleSettings(guidance=Guidance(4.0)), [8], None)
    assert alone.settings.guidance.cfg_scale == 4.0


def test_mistakes_are_one_line_before_anything_is_drawn(models, tmp_path, capsys):
    assert parse_steps(" 8, 50") == [8, 50]
    with pytest.raises(U1Error, match="--steps '8,x': expected numbers"):
        parse_steps("8,x")
    out = tmp_path / "s.png"
    command = ["compare", "--model", str(models["u1"]), "--device", "cpu", "--prompt", "x", "--out", str(out)]
    assert main([*command, "--lora", str(tmp_path / "none.safetensors")]) == 2
    assert capsys.readouterr().err.endswith("none.safetensors: there is no such LoRA file\n")
    assert not out.exists()
