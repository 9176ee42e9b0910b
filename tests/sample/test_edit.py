from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from u1_core.errors import U1Error
from u1_core.sample import branches
from u1_core.sample.edit import at_full_budget, edit, input_limits, input_patches
from u1_core.sample.guidance import Branch, Guidance
from u1_core.sample.settings import SampleSettings

SMALL = (64, 1024)
"""Fewest and most pixels of inputs that keep the tests fast."""


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def built(monkeypatch):
    """Without drawing: session -> the sequences that its prefixes are built of, and the guidance that would be used."""

    def watch(session) -> tuple[list, list]:
        sequences, guidances = [], []
        build = session.build_prefixes
        monkeypatch.setattr(session, "build_prefixes", lambda given: (sequences.extend(given), build(given))[1])

        def denoise(config, weights, noise, prefixes, guidance, *rest):
            guidances.append((guidance, list(prefixes)))
            return noise

        monkeypatch.setattr(branches, "denoise", denoise)
        return sequences, guidances

    return watch


def settings(cfg: float = 4.0, image_cfg: float = 2.0, **more) -> SampleSettings:
    return SampleSettings(width=24, height=16, steps=1, guidance=Guidance(cfg, image_cfg), **more)


def test_three_branches_of_two_pictures(session, built):
    model = session()
    sequences, guidances = built(model)
    # 16 x 16 and 32 x 16 pixels: 4 and 8 tokens of 8 x 8.
    edit(model, "make it blue", [picture(16, 16), picture(32, 16)], settings(), limits=SMALL)
    texts = [model.tokenizer.decode(sequence.ids.tolist()) for sequence in sequences]
    first, second = (f"<img>{'<IMG_CONTEXT>' * tokens}</img>" for tokens in (4, 8))
    assert texts[0].endswith(
        f"<|im_start|>user\nImage-1:{first}\nImage-2:{second}\nmake it blue<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n<img>"
    )
    assert texts[0].startswith("<|im_start|>system\nYou are an image generation and editing assistant")
    assert texts[1] == f"<|im_start|>user\n{first}{second}<|im_end|>\n<|im_start|>assistant\n<img>"
    assert texts[2] == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<img>"
    ((guidance, given),) = guidances
    assert guidance.pictures
    assert given == [Branch.CONDITIONAL, Branch.TEXT_FREE, Branch.UNCONDITIONAL]


@pytest.mark.parametrize(("cfg", "image_cfg", "count"), [(1.0, 1.0, 1), (4.0, 1.0, 2), (3.0, 3.0, 2), (4.0, 2.0, 3)])
def test_only_the_branches_that_guide_are_built(session, built, cfg, image_cfg, count):
    model = session()
    sequences, _ = built(model)
    edit(model, "x", [picture(16, 16)], settings(cfg, image_cfg), limits=SMALL)
    assert len(sequences) == count


def test_think_mode_leaves_the_answer_open(session, built, scripted):
    model = session()
    scripted(model, model.tokenizer.encode("hm</think>"))
    sequences, _ = built(model)
    drawn = edit(model, "x", [picture(16, 16)], settings(), think=True, limits=SMALL)
    assert drawn.think_text == "hm</think>"
    assert model.tokenizer.decode(sequences[0].ids.tolist()).endswith("<|im_start|>assistant\n<think>\n")


@pytest.mark.parametrize("count", [0, 11])
def test_one_to_ten_pictures(session, count):
    with pytest.raises(U1Error, match=f"edit takes 1 to 10 pictures, not {count}"):
        edit(session(), "x", [picture(8, 8)] * count, settings())


def test_settings_are_checked_before_pictures_are_read(session):
    with pytest.raises(U1Error, match="width 20 is not a multiple of 8"):
        edit(session(), "x", [picture(8, 8)], replace(settings(), width=20))


def test_limits_of_the_released_models(tiny):
    config = tiny("u1.5").config  # 32 pixels a token, and 4096 tokens by default
    assert config.native_pixels == 2048**2
    assert [input_limits(config, count) for count in (0, 1, 4)] == [(512**2, 2048**2)] * 3
    assert input_limits(config, 5) == (512**2, 4096**2 // 5)
    assert input_limits(config, 10) == (512**2, 4096**2 // 10)


def test_inputs_stay_within_their_limits(tiny):
    config = tiny("u1").config
    grids = [p.grid for p in input_patches(config, [picture(16, 16), picture(200, 100), picture(6, 5)], (128, 2048))]
    # 8 x 8 pixels a token of 2 x 2 patches: kept at 2 x 2 tokens, shrunk to 4 x 8 (of at most 32), grown to 2 x 2.
    assert grids == [(4, 4), (8, 16), (4, 4)]


def test_small_inputs_are_scaled_up_to_the_budget(tiny):
    config = replace(tiny("u1").config, native_tokens=64)
    (one,) = at_full_budget(config, [picture(20, 10)])
    assert one.size == (96, 48)  # 64 tokens at 2:1 are 11.3 x 5.7 of 8 pixels, rounded up
    three = at_full_budget(config, [picture(20, 20), picture(400, 400), picture(10, 20)])
    # 2 * 64 / 3 = 42 tokens each: 6.5 x 6.5 rounded up, rounded down where it shrinks, 4.6 x 9.2 rounded up.
    assert [image.size for image in three] == [(56, 56), (48, 48), (40, 80)]


def test_scaling_up_is_lanczos(tiny):
    config, one = replace(tiny("u1").config, native_tokens=64), picture(20, 10)
    (scaled,) = at_full_budget(config, [one])
    assert np.array_equal(np.array(scaled), np.array(one.resize((96, 48), Image.Resampling.LANCZOS)))


def test_without_limits_inputs_are_read_at_the_full_budget(session, built):
    model = session()  # made for 64 tokens
    sequences, _ = built(model)
    edit(model, "x", [picture(20, 10)], settings())
    (seen,) = sequences[0].pictures
    assert seen.grid == (10, 22)  # 11 x 5 tokens: scaled up to 96 x 48 pixels, which is over 64 tokens again


def test_the_edited_picture_follows_euler(session, close):
    """All three branches, drawn, against each branch passed by itself."""
    from u1_core.model.generation import generation_pass
    from u1_core.sample.euler import draw_noise
    from u1_core.sample.schedule import sampling_timesteps
    from u1_core.text import prompts
    from u1_core.text.sequence import build_sequence

    model, pictures = session(), [picture(16, 16)]
    ours = edit(model, "make it blue", pictures, replace(settings(), steps=3, seed=9), limits=SMALL).pictures
    patches = input_patches(model.config, pictures, SMALL)
    queries = [
        (prompts.edit("make it blue", 1), patches),
        (prompts.edit_text_free(1), patches),
        (prompts.unconditional(), ()),
    ]
    prefixes = [model.build_prefixes([build_sequence(model.tokenizer, *query)])[0].kv for query in queries]
    z = draw_noise(model.config, (1, 3, 16, 24), torch.Generator().manual_seed(9), torch.float32).double()
    for t, later in pairwise(sampling_timesteps(3, 3.0)):
        with torch.no_grad():
            x = [
                generation_pass(model.config, model.generation, z.float(), t.expand(1), [prefix]).double()
                for prefix in prefixes
            ]
        c, i, u = ((one - z) / max(1 - float(t), 0.02) for one in x)
        z = z + float(later - t) * (u + 4 * (c - i) + 2 * (i - u))
    assert close(ours, z, 1e-5)
