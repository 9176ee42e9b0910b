from dataclasses import replace

import pytest
import torch
from PIL import Image

from u1_core.data.folder import Sample
from u1_core.errors import U1Error
from u1_core.jobs import Job
from u1_core.train.prepare import prepare
from u1_core.train.recipe import Style, Validation
from u1_core.train.validation import (
    Question,
    Validator,
    compare,
    errors,
    held_out,
    standard_validator,
    triggered,
)

HEAD = "fm_modules.fm_head.2"
SETTINGS = Validation(every=10, pictures=2, timesteps=4)


@pytest.fixture
def trainer(session, recipe):
    return prepare(Job(print), session, recipe)


def silence(trainer):
    """Make the base model predict 0 everywhere, so that errors follow from the pictures alone."""
    zeros = {f"{HEAD}.{part}": torch.zeros_like(trainer.base.modules[f"{HEAD}.{part}"]) for part in ("weight", "bias")}
    trainer.base = replace(trainer.base, modules={**trainer.base.modules, **zeros})
    trainer.adapter.full = {name: tensor.clone() for name, tensor in zeros.items()}


def test_the_untouched_model_is_at_exactly_100_percent(trainer):
    found = Validator(SETTINGS, trainer.data.samples.turns, [], seed=0).run(trainer, 0)
    assert set(found) == {"training", "seconds"}
    shares = [found["training"]["x0"], found["training"]["v"], *found["training"]["ranges"]]
    assert [(share["percent"], share["low"], share["high"]) for share in shares] == [(100.0, 100.0, 100.0)] * 6
    assert [(one["from"], one["to"]) for one in found["training"]["ranges"]] == [
        (0.0, 0.25),
        (0.25, 0.5),
        (0.5, 0.75),
        (0.75, 1.0),
    ]
    assert (found["training"]["pictures"], found["training"]["questions"]) == (2, 8)


def test_a_known_bias_has_its_known_error(trainer):
    silence(trainer)
    trainer.adapter.full[f"{HEAD}.bias"] += 0.25
    questions = [Question(number, t, 0) for number in (0, 3) for t in (0.2, 0.7)]
    x0 = [trainer.data.pictures.fetch(number).pixels.double() / 127.5 - 1 for number in (0, 0, 3, 3)]
    base, ours = errors(trainer, questions, None, 0), errors(trainer, questions, trainer.adapter, 0)
    torch.testing.assert_close(base, torch.stack([x.square().mean() for x in x0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours, torch.stack([(0.25 - x).square().mean() for x in x0]), rtol=1e-6, atol=0)


def test_percentages_follow_from_the_errors(trainer):
    silence(trainer)
    trainer.adapter.full[f"{HEAD}.bias"] -= 0.1
    found = Validator(SETTINGS, [1, 1, 4], [0], seed=0).run(trainer, 10)
    for name, numbers in (("training", (1, 4)), ("held_out", (0,))):
        x0 = [trainer.data.pictures.fetch(number).pixels.double() / 127.5 - 1 for number in numbers]
        base, ours = (sum((x + off).square().mean() for x in x0) / len(x0) for off in (0.0, 0.1))
        shares = [found[name]["x0"], *found[name]["ranges"], found[name]["v"]]
        for share in shares:
            assert share["percent"] == pytest.approx(100 * (ours / base).item(), rel=1e-5)
            assert share["low"] <= share["percent"] * (1 + 1e-9)
            assert share["percent"] <= share["high"] * (1 + 1e-9)
        assert found[name]["x0"]["mean"] == pytest.approx(ours.item(), rel=1e-5)
        # Errors do not depend on t here, so v's mean is x0's times the mean of 1 / (1 - t)².
        factor = sum(1 / (1 - t) ** 2 for t in (0.125, 0.375, 0.625, 0.875)) / 4
        assert found[name]["v"]["mean"] == pytest.approx(ours.item() * factor, rel=1e-5)
    assert found["gap"] == found["held_out"]["x0"]["percent"] - found["training"]["x0"]["percent"]


def test_the_band_is_that_of_paired_questions():
    base = torch.rand(40, generator=torch.Generator().manual_seed(1)) + 0.1
    half = compare(base / 2, base)
    assert (half.percent, half.low, half.high) == (50.0, 50.0, 50.0)
    noisy = base * (1 + 0.2 * torch.randn(40, generator=torch.Generator().manual_seed(2)))
    share = compare(noisy, base)
    # For a ratio of means, the standard error is that of (ours - ratio * base) / mean base.
    residual = (noisy - share.percent / 100 * base).double()
    error = 100 * residual.std().item() / 40**0.5 / base.mean().item()
    assert share.high - share.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert share.low < share.percent < share.high


def test_questions_are_the_same_each_time_and_training_goes_on_as_without(session, recipe):
    def losses(validate):
        trainer = prepare(Job(print), session, recipe)
        validator = Validator(SETTINGS, trainer.data.samples.turns, [], seed=0)
        found = []
        for step in (1, 2, 3):
            if validate:
                validator.run(trainer, step)
            found += [record["loss"] for record in trainer.step(step)]
        return found, validator.run(trainer, 3)["training"]["x0"]

    with_it, without = losses(True), losses(False)
    assert with_it == without
    assert with_it[1]["percent"] != 100.0


def test_it_is_due_from_the_start_and_each_so_many_steps():
    validator = Validator(SETTINGS, [0], [], seed=0)
    assert [step for step in range(25) if validator.due(step)] == [0, 10, 20]
    assert not Validator(replace(SETTINGS, every=0), [0], [], seed=0).due(0)


@pytest.mark.parametrize(
    ("samples", "split", "count"),
    [(49, None, 0), (50, None, 2), (500, None, 2), (50, 0.0, 0), (50, 0.1, 5), (5, 0.01, 1)],
)
def test_how_many_are_held_out(samples, split, count):
    found = held_out(range(samples), replace(SETTINGS, split=split), seed=3)
    assert len(set(found)) == count
    assert found == sorted(found) == held_out(range(samples), replace(SETTINGS, split=split), seed=3)
    assert all(0 <= number < samples for number in found)


def test_pictures_without_the_trigger_are_neither_held_out_nor_asked_about():
    samples = [Sample(f"{folder}/{n}.png", None, "a hut") for folder in ("ink", "plain") for n in range(10)]
    style = Style(trigger="sty", untriggered=("plain/*",))
    assert triggered(samples, style, range(20)) == list(range(10))
    assert triggered(samples, Style(trigger="sty"), range(20)) == range(20)
    found = held_out([3, 5, 7, 9], replace(SETTINGS, split=0.5), seed=3)
    assert len(found) == 2
    assert set(found) < {3, 5, 7, 9}


def test_some_pictures_must_have_the_trigger(session, recipe):
    recipe = replace(recipe, style=replace(recipe.style, untriggered=("*",)))
    with pytest.raises(U1Error, match=r"^style\.untriggered leaves no picture in .* with the trigger; leave some out"):
        prepare(Job(lambda job: None), session, recipe)


def test_something_must_be_left_to_train_on():
    with pytest.raises(U1Error, match=r"validation\.split is 0\.9: that leaves none of 2 pictures to train on"):
        held_out(range(2), replace(SETTINGS, split=0.9), seed=0)


def test_only_pictures_that_are_trained_on_are_held_out(session, recipe, tmp_path):
    """Those left out because they are too small are not asked about either."""
    folder = tmp_path / "squares"
    folder.mkdir()
    for number in range(40):
        Image.new("RGB", (96, 96) if number % 2 else (16, 16), (number, 90, 40)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"a plain square, number {number}", encoding="utf-8")
    data = replace(recipe.data, data_dir=str(folder), upscale="skip")
    recipe = replace(recipe, data=data, validation=replace(SETTINGS, split=0.25))
    trainer = prepare(Job(lambda job: None), session, recipe)
    assert len(trainer.data.held_out) == 5
    assert all(number % 2 for number in trainer.data.held_out)
    assert set(trainer.data.samples.turns) == set(range(1, 40, 2)) - set(trainer.data.held_out)
    validator = standard_validator(recipe, trainer.data)
    assert set(validator._sets["held_out"]) <= set(trainer.data.held_out)
    assert set(validator._sets["training"]) <= set(trainer.data.samples.turns)
