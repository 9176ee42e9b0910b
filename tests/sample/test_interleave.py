import threading
from dataclasses import replace

import pytest
import torch

from u1_core.data.pictures import generated_patches
from u1_core.errors import U1Error
from u1_core.model.understanding import embed_picture
from u1_core.prefix.decode import GrowingPrefix
from u1_core.sample import branches
from u1_core.sample.guidance import Branch, Guidance
from u1_core.sample.interleave import interleave
from u1_core.sample.settings import SampleSettings

SETTINGS = SampleSettings(width=24, height=16, steps=1, seed=7, guidance=Guidance(4.0, 2.0))


@pytest.fixture
def drawings(monkeypatch) -> list[tuple[dict, torch.Tensor]]:
    """In place of drawing: the noise itself is the picture. Lists each one's prefixes and noise."""
    seen = []

    def denoise(config, weights, noise, prefixes, *rest):
        seen.append((prefixes, noise))
        return noise

    monkeypatch.setattr(branches, "denoise", denoise)
    return seen


@pytest.fixture
def telling(session, scripted, drawings):
    """(said, settings, **more) -> (session, what the prefixes heard, what came out)."""

    def run(said: str, settings: SampleSettings = SETTINGS, **more):
        model = session()
        grown = scripted(model, model.tokenizer.encode(said))
        told = list(interleave(model, "two foxes", [], settings, system="Be brief.", **more))
        return model, [prefix.heard for prefix in grown], told

    return run


def in_short(told: list) -> list[str]:
    """Text joined up between pictures, each of which is "#"."""
    text = "".join(piece if isinstance(piece, str) else "\n#\n" for piece in told)
    return [piece for piece in text.split("\n") if piece]


def test_text_pictures_and_the_end(telling):
    model, (conditional, text_free, unconditional), told = telling("one<img>two<img>three")
    assert in_short(told) == ["one", "#", "two", "#", "three"]
    start, end, encode = model.tokenizer.img_start, model.tokenizer.img_end, model.tokenizer.encode
    # A picture is shown with its </img>, of which the scripted prefix only notes the grid of 2 x 3 tokens.
    assert conditional == [*encode("one"), start, (2, 3), *encode("two"), start, (2, 3), *encode("three")]
    assert text_free == [start, (2, 3), start, (2, 3)]
    assert unconditional == []
    assert end not in conditional


def test_a_text_alone(telling, drawings):
    _, (conditional, *_), told = telling("just words")
    assert in_short(told) == ["just words"]
    assert drawings == []
    assert len(conditional) == len("just words")


def test_at_most_ten_pictures(telling, drawings):
    model, (conditional, text_free, _), told = telling("<img>" * 12)
    assert in_short(told) == ["#"] * 10
    assert len(drawings) == 10
    assert text_free == [model.tokenizer.img_start, (2, 3)] * 10
    assert conditional == text_free


def test_at_most_so_many_tokens_of_text(telling):
    """Over all stretches of text; pictures do not count."""
    _, _, told = telling("abc<img>defgh", max_tokens=5)
    assert in_short(told) == ["abc", "#", "de"]
    _, _, told = telling("abc<img>defgh", max_tokens=3)
    assert in_short(told) == ["abc"]


def test_pictures_come_one_at_a_time(telling):
    _, _, told = telling("<img>", replace(SETTINGS, batch=3))
    assert [piece.shape for piece in told if not isinstance(piece, str)] == [(1, 3, 16, 24)]


def test_one_generator_gives_every_pictures_noise(telling, drawings):
    model, _, told = telling("<img>and<img>")
    generator = torch.Generator().manual_seed(7)
    scale = (6 / 64) ** 0.5
    for picture, (_, noise) in zip([piece for piece in told if not isinstance(piece, str)], drawings, strict=True):
        expected = torch.randn(1, 3, 16, 24, generator=generator) * model.config.noise_scale_for(6)
        assert torch.equal(noise, expected)
        assert picture is noise
        assert model.config.noise_scale_for(6) == pytest.approx(scale)


def test_branches_stand_where_they_should(telling, drawings):
    model, _, _ = telling("one<img>two<img>")
    encode = model.tokenizer.encode
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    user = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompt = len(encode(system + user.format("two foxes") + "<think>\n\n</think>\n\n"))
    empty, uncond = len(encode(user.format(""))), len(encode(user.format("") + "<img>"))
    first, second = (prefixes for prefixes, _ in drawings)
    assert [first[branch].tokens for branch in Branch] == [prompt + 3 + 1, empty + 1, uncond]
    # A picture of six tokens and its </img> come to a prefix, but take two steps of t.
    assert [second[branch].tokens for branch in Branch] == [prompt + 3 + 1 + 7 + 3 + 1, empty + 1 + 7 + 1, uncond]
    assert [second[branch].next_t for branch in Branch] == [prompt + 3 + 1 + 2 + 3 + 1, empty + 1 + 2 + 1, uncond]


@pytest.mark.parametrize(
    ("cfg", "image_cfg", "expected"),
    [
        (1.0, 1.0, {Branch.CONDITIONAL}),
        (4.0, 1.0, {Branch.CONDITIONAL, Branch.TEXT_FREE}),
        (3.0, 3.0, {Branch.CONDITIONAL, Branch.UNCONDITIONAL}),
    ],
)
def test_only_the_branches_that_guide_are_built(telling, drawings, cfg, image_cfg, expected):
    settings = SampleSettings(width=24, height=16, steps=1, guidance=Guidance(cfg, image_cfg))
    _, heard, _ = telling("<img>", settings)
    assert len(heard) == len(expected)
    assert set(drawings[0][0]) == expected


def test_a_drawn_picture_is_seen_by_the_understanding_tower(session, scripted, drawings, monkeypatch, close):
    """What is appended is the vision embedding of the picture itself, in ImageNet's normalisation."""
    shown = []
    append = GrowingPrefix.append_picture
    monkeypatch.setattr(
        GrowingPrefix, "append_picture", lambda self, tokens, *rest: (shown.append(tokens), append(self, tokens, *rest))
    )
    model = session()
    scripted(model, [model.tokenizer.img_start])
    (picture,) = [piece for piece in interleave(model, "a", [], SETTINGS) if not isinstance(piece, str)]
    seen = (picture[0] * 0.5 + 0.5 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    patches = generated_patches(picture, model.config)
    assert close(patches.patches[7], seen[:, 4:8, 4:8].flatten())  # the second of the second row of 4 x 6 patches
    tokens = embed_picture(model.config, model.understanding, patches.patches.unflatten(0, patches.grid))
    assert len(shown) == 2  # to the conditional and the text-free branch
    for one in shown:
        assert torch.equal(one, tokens)


def test_the_lease_is_held_until_the_end(session, scripted, drawings):
    model = session()
    scripted(model, model.tokenizer.encode("abc"))
    told = interleave(model, "a", [], SETTINGS)
    next(told)
    other = threading.Thread(target=lambda: model.lease.acquire(), daemon=True)
    other.start()
    other.join(0.1)
    assert other.is_alive()
    told.close()
    other.join(10)
    assert not other.is_alive()


def test_refused_before_anything_is_computed(session):
    with pytest.raises(U1Error, match="width 20 is not a multiple of 8"):
        next(interleave(session(), "a", [], SampleSettings(width=20, height=16)))
    with pytest.raises(U1Error, match="cfg_zero_star"):
        next(interleave(session(), "a", [], SampleSettings(guidance=Guidance(norm="cfg_zero_star"))))
