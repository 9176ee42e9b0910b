from dataclasses import replace

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.plan import plan_lora
from u1_core.sample.euler import denoise, draw_noise
from u1_core.sample.guidance import Branch, Guidance
from u1_core.sample.schedule import sampling_timesteps
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.text import prompts
from u1_core.text.sequence import build_sequence

SETTINGS = SampleSettings(width=64, height=32, steps=3, seed=5, batch=2)


def adapter(config, seed: int = 1) -> Adapter:
    """A LoRA that does something, on attention."""
    made = Adapter.create(plan_lora(config, "attn=r2a2"), seed)
    for number, module in enumerate(made.modules.values()):
        module.up.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
        module.down.requires_grad_(False)
        module.up.requires_grad_(False)
    return made


def test_prompts_noise_and_steps_put_together(kind, session, close):
    model = session(kind)
    ours = text_to_image(model, "a fox", SETTINGS).pictures
    assert ours.shape == (2, 3, 32, 64)
    assert not torch.equal(ours[0], ours[1])
    queries = {Branch.CONDITIONAL: prompts.text_to_image("a fox"), Branch.UNCONDITIONAL: prompts.unconditional()}
    prefixes = {
        branch: model.build_prefixes([build_sequence(model.tokenizer, query)])[0].kv
        for branch, query in queries.items()
    }
    noise = draw_noise(model.config, (2, 3, 32, 64), torch.Generator().manual_seed(5), torch.float32)
    expected = denoise(model.config, model.generation, noise, prefixes, Guidance(), sampling_timesteps(3, 3.0))
    assert close(ours, expected, 1e-5)


def test_the_floor_of_what_remains_is_the_settings(session, close):
    """Steps at t = 0, 1/3 and 2/3: with a floor of 1/2 the last goes two thirds of its way."""
    model, seen = session(), []
    settings = replace(SETTINGS, shift=1.0, guidance=Guidance(1.0), t_eps=0.5)
    plain = text_to_image(model, "a fox", replace(settings, t_eps=0.02)).pictures
    floored = text_to_image(model, "a fox", settings, on_step=lambda step: seen.append(step.x_pred)).pictures
    assert close(floored, seen[-1])
    assert not close(floored, plain, 1e-2)


def test_a_seed_is_a_picture(session):
    model = session()
    first, again = (text_to_image(model, "a fox", SETTINGS).pictures for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, text_to_image(model, "a fox", replace(SETTINGS, seed=6)).pictures)
    assert not torch.equal(first, text_to_image(model, "a fix", SETTINGS).pictures)


def test_steps_and_words_are_told(session, scripted):
    model = session()
    scripted(model, model.tokenizer.encode("red</think>"))
    steps, words = [], []
    drawn = text_to_image(model, "a fox", SETTINGS, think=True, on_step=steps.append, on_text=words.append)
    assert drawn.think_text == "red</think>"
    assert "".join(words) == "red\n"
    assert [step.index for step in steps] == [0, 1, 2]


def test_thinking_changes_the_conditional_branch_alone(session, scripted, close):
    """A thought of nothing is the prompt without thinking but for its blank line: `<think>\\n</think>\\n\\n<img>`."""
    model = session()
    scripted(model, model.tokenizer.encode("</think>"))
    ours = text_to_image(model, "a fox", SETTINGS, think=True).pictures
    query = prompts.text_to_image("a fox", think=True) + "</think>\n\n<img>"
    queries = {Branch.CONDITIONAL: query, Branch.UNCONDITIONAL: prompts.unconditional()}
    prefixes = {
        branch: model.build_prefixes([build_sequence(model.tokenizer, query)])[0].kv
        for branch, query in queries.items()
    }
    noise = draw_noise(model.config, (2, 3, 32, 64), torch.Generator().manual_seed(5), torch.float32)
    expected = denoise(model.config, model.generation, noise, prefixes, Guidance(), sampling_timesteps(3, 3.0))
    assert close(ours, expected, 1e-5)


def test_loras_are_live(session, close):
    """Strength 0 is no LoRA, two of them add up, and the strength may change between pictures."""
    model = session()
    plain = text_to_image(model, "a fox", SETTINGS).pictures
    lora, other = adapter(model.config), adapter(model.config, seed=2)
    model.use([lora])
    with_lora = text_to_image(model, "a fox", SETTINGS).pictures
    assert not close(with_lora, plain, 1e-3)
    model.adapters[0].strength = 0.0
    assert torch.equal(text_to_image(model, "a fox", SETTINGS).pictures, plain)
    model.use([lora, other])
    both = text_to_image(model, "a fox", SETTINGS).pictures
    assert not close(both, with_lora, 1e-3)
    model.adapters[1].strength = 0.0
    assert close(text_to_image(model, "a fox", SETTINGS).pictures, with_lora)
    model.use([])
    assert torch.equal(text_to_image(model, "a fox", SETTINGS).pictures, plain)


def test_half_strength_is_half_the_term(session, close):
    model, lora = session(), adapter(session().config)
    lora.strength = 0.5
    model.use([lora])
    half = text_to_image(model, "a fox", SETTINGS).pictures
    for module in lora.modules.values():
        module.up.mul_(0.5)
    lora.strength = 1.0
    model.use([lora])
    assert close(text_to_image(model, "a fox", SETTINGS).pictures, half)


def test_settings_are_checked_first(session):
    with pytest.raises(U1Error, match="height 30 is not a multiple of 8; try 24 or 32"):
        text_to_image(session(), "a fox", replace(SETTINGS, height=30))
