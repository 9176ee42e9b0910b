import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.jobs import Job
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import write_lora
from u1_core.lora.full import with_trained_tensors
from u1_core.lora.plan import FINAL_NORM, plan_lora
from u1_core.session import Session
from u1_core.train.objective import flow_loss
from u1_core.train.prepare import new_adapter, prepare
from u1_core.train.recipe import Lora
from u1_core.train.turn import MicroBatch, clean, draw_turn


@pytest.fixture
def trainer(session, recipe):
    return prepare(Job(print), session, recipe)


def draw(trainer, number, **settings):
    return draw_turn(trainer.config, replace(trainer.recipe.train, **settings), trainer.data, number)


def noise_of(turn):
    return (turn.z - turn.t * clean(turn.picture)) / (1 - turn.t)


def predict(trainer, turn):
    return trainer.predict(MicroBatch.of([turn]).to(torch.device("cpu"), [trainer.data.prefix_of(turn)]))


def test_a_turn_depends_on_seed_draw_and_sample_alone(trainer):
    first = draw(trainer, 7)
    draw(trainer, 3)
    torch.manual_seed(99)
    again = draw(trainer, 7)
    assert (first.sample, first.t, first.dropout_seed) == (again.sample, again.t, again.dropout_seed)
    assert torch.equal(first.z, again.z)
    other = draw(trainer, 7 + len(trainer.data.samples) * 2)
    assert not torch.equal(noise_of(first).flatten()[:9], noise_of(other).flatten()[:9])


def test_a_turn_is_a_picture_in_its_range_with_noise_of_its_scale(trainer):
    turns = [draw(trainer, number) for number in range(5)]
    assert sorted(turn.sample for turn in turns) == [f"{i}.png" for i in range(5)]
    for turn in turns:
        height, width = turn.picture.shape[2:]
        assert turn.bucket == f"{width}x{height}"
        assert width * height <= 32 * 32
        scale = math.sqrt(width * height / 8**2 / 64)
        noise = noise_of(turn)
        assert noise.std().item() == pytest.approx(scale, rel=4 / math.sqrt(2 * noise.numel()))
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), clean(turn.picture).flatten()]))[0, 1]) < 0.1
        x0 = MicroBatch.of([turn]).x0
        assert x0.min() >= -1
        assert x0.max() <= 1
        torch.testing.assert_close((x0 + 1) * 127.5, turn.picture.float(), rtol=0, atol=1e-4)


def test_captions_are_dropped_as_often_as_the_recipe_says(session, recipe, with_train):
    trainer = prepare(Job(print), session, with_train(recipe, cond_dropout_text=0.2, cond_dropout_both=0.1))
    count = 1500
    dropped = [draw(trainer, number).dropped for number in range(count)]
    for name, share in (("text", 0.2), ("both", 0.1), ("", 0.7)):
        assert abs(dropped.count(name) / count - share) < 3 * math.sqrt(share * (1 - share) / count)
    turn = draw(trainer, dropped.index("text"))
    assert trainer.data.prefix_of(turn) is trainer.data.prefixes.unconditional
    kept = draw(trainer, dropped.index(""))
    assert trainer.data.prefix_of(kept).chunks[-1] is trainer.data.prefixes.captions[int(kept.sample[0])].chunks[-1]


def test_timesteps_follow_their_distribution(trainer):
    t = torch.cat([draw(trainer, number).t for number in range(1500)])
    std = 0.95 / math.sqrt(12)
    assert abs(t.mean() - 0.525) < 3 * std / math.sqrt(len(t))
    assert abs(t.std() - std) < 3 * std / math.sqrt(2 * len(t))


def test_a_step_changes_all_that_is_trained_and_nothing_else(session, recipe, with_train):
    trainer = prepare(Job(print), session, with_train(recipe, lr=1e-2))
    base = {**trainer.base.modules, "norm": trainer.base.norm, "qkv": trainer.base.layers[0].qkv}
    base = {name: tensor.clone() for name, tensor in base.items()}
    before = {path: (m.down.detach().clone(), m.up.detach().clone()) for path, m in trainer.adapter.modules.items()}
    full = {name: tensor.detach().clone() for name, tensor in trainer.adapter.full.items()}
    trainer.step(1)
    assert all(not torch.equal(module.up, before[path][1]) for path, module in trainer.adapter.modules.items())
    assert all(not torch.equal(tensor, full[name]) for name, tensor in trainer.adapter.full.items())
    # Up starts at zero, so the first gradient of down is zero and only decay moves it.
    for path, module in trainer.adapter.modules.items():
        torch.testing.assert_close(module.down.detach(), before[path][0] * (1 - 1e-2 * 0.01))
    now = {**trainer.base.modules, "norm": trainer.base.norm, "qkv": trainer.base.layers[0].qkv}
    assert all(torch.equal(now[name], tensor) for name, tensor in base.items())


def test_a_record_tells_what_happened(session, recipe, with_train):
    trainer = prepare(Job(print), session, with_train(recipe, loss_type="v"))
    turn = draw(trainer, 0)
    with torch.no_grad():
        x_pred = predict(trainer, turn)
    (record,) = trainer.step(1)
    assert record["step"] == 1
    assert record["loss"] == record["v_mse"]
    x0_mse = flow_loss("x0", x_pred, clean(turn.picture), turn.z, turn.t, 0.05).item()
    assert record["x0_mse"] == pytest.approx(x0_mse, rel=1e-6)
    assert record["v_mse"] == pytest.approx(record["x0_mse"] / max(1 - record["t"], 0.05) ** 2, rel=1e-4)
    assert (record["sample"], record["bucket"], record["dropped"]) == (turn.sample, turn.bucket, "")
    assert (record["t"], record["lr"], record["memory_bytes"]) == (turn.t.item(), 1e-3, None)
    assert record["seconds"] > 0


def test_accumulation_averages_the_gradients_of_its_pictures(session, recipe, with_train):
    def gradients(grad_accum, draws):
        trainer = prepare(Job(print), session, with_train(recipe, grad_accum=grad_accum))
        trainer.optimizer.step = lambda: None
        found = []
        trainer.optimizer.zero_grad = lambda set_to_none: found.append([p.grad.clone() for p in parameters])
        parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        for number in draws:
            trainer.step(number)
            for parameter in parameters:
                parameter.grad = None
        return found

    one, two = gradients(1, [1, 2])
    (both,) = gradients(2, [1])
    for a, b, mean in zip(one, two, both, strict=True):
        torch.testing.assert_close((a + b) / 2, mean, rtol=1e-4, atol=1e-7)


def gradients_of(trainer, draws):
    """The gradients of a step whose only micro-batches are these ranges of draws."""
    order = SimpleNamespace(draws=lambda batch: draws[batch % len(draws)], turn_at=trainer.data.order.turn_at)
    trainer.data = replace(trainer.data, order=order)
    trainer.recipe = replace(trainer.recipe, train=replace(trainer.recipe.train, grad_accum=len(draws)))
    found = {}
    trainer.optimizer.step = lambda: found.update({name: p.grad.clone() for name, p in trainer.parameters.items()})
    records = trainer.step(1)
    return found, records


@pytest.mark.parametrize("whole_epoch", [False, True])
def test_a_batch_has_the_mean_gradient_of_its_pictures(session, recipe, with_train, whole_epoch):
    """So have several of different lengths together: every picture counts alike, whatever it is batched with."""
    trainer = prepare(Job(print), session, with_train(recipe, batch_size=2, cond_dropout_text=0.5, seed=3))
    batches = [trainer.data.order.draws(number) for number in range(3 if whole_epoch else 1)]
    together, records = gradients_of(trainer, batches)
    draws = [draw for batch in batches for draw in batch]
    alone = [gradients_of(trainer, [range(draw, draw + 1)]) for draw in draws]
    assert [len(batch) for batch in batches] == ([2, 2, 1] if whole_epoch else [2])
    assert len({record["dropped"] for record in records}) == 2
    for name, found in together.items():
        mean = sum(gradients[name] for gradients, _ in alone) / len(draws)
        torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-7)
    for record, (_, (other,)) in zip(records, alone, strict=True):
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert (record["sample"], record["t"], record["bucket"]) == (other["sample"], other["t"], other["bucket"])


def test_recomputing_layers_changes_no_gradient(session, recipe):
    def first_step(keep_last):
        changed = replace(recipe, runtime=replace(recipe.runtime, gc_skip_last=keep_last))
        trainer = prepare(Job(print), session, replace(changed, lora=replace(recipe.lora, dropout=0.3)))
        trainer.step(1)
        return trainer.step(2)[0]

    records = [first_step(keep_last) for keep_last in (0, 2, 99)]
    assert len({(record["loss"], record["grad_norm"]) for record in records}) == 1


def test_dropout_of_a_lora_is_drawn_anew_for_each_turn(session, recipe):
    trainer = prepare(Job(print), session, replace(recipe, lora=Lora(preset="attn_only", dropout=0.5)))
    for module in trainer.adapter.modules.values():
        torch.nn.init.normal_(module.up.data, std=0.1, generator=torch.Generator().manual_seed(0))
    turn = draw(trainer, 0)
    with torch.no_grad():
        first, again = predict(trainer, turn), predict(trainer, turn)
        other = predict(trainer, replace(turn, dropout_seed=turn.dropout_seed + 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_upstream_lora_is_in_effect_and_stays_as_it_is(session, recipe, tmp_path):
    upstream = Adapter.create(plan_lora(session.config, "attn=r4;fm_head=r4"), seed=3)
    for module in upstream.modules.values():
        torch.nn.init.normal_(module.up.data, std=0.3, generator=torch.Generator().manual_seed(0))
    write_lora(tmp_path / "upstream.safetensors", upstream)

    def trainer(**settings):
        return prepare(Job(print), session, replace(recipe, runtime=replace(recipe.runtime, **settings)))

    path = str(tmp_path / "upstream.safetensors")
    trainers = [
        trainer(),
        trainer(upstream_lora_path=path),
        trainer(upstream_lora_path=path, upstream_lora_skip=("fm_modules.fm_head",)),
    ]
    with torch.no_grad():
        alone, whole, without_head = (predict(each, draw(each, 0)) for each in trainers)
    assert (whole - alone).norm() > 0.01 * alone.norm()
    assert (without_head - alone).norm() > 0.01 * alone.norm()
    assert not torch.equal(whole, without_head)
    trainers[1].step(1)
    (used,) = trainers[1].upstream
    assert all(torch.equal(module.up, upstream.modules[path].up) for path, module in used.modules.items())
    with pytest.raises(U1Error, match=r"upstream_lora_skip has 'fm_head', but .* has no module of that name or below"):
        trainer(upstream_lora_path=path, upstream_lora_skip=("fm_head",))


def test_a_step_whose_loss_is_not_finite_changes_nothing(trainer):
    with torch.no_grad():
        trainer.adapter.full["fm_modules.fm_head.2.bias"][0] = float("nan")
    before = [parameter.detach().clone() for parameter in trainer.adapter.parameters()]
    (record,) = trainer.step(1)
    assert record["skipped"].startswith("loss nan, gradient norm nan (sample ")
    after = trainer.adapter.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)
    assert trainer.guard.skipped == 1


def test_gradients_are_scaled_down_to_the_limit(session, recipe, with_train):
    norms = []
    trainer = prepare(Job(print), session, with_train(recipe, max_grad_norm=1e-3))
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.parameters.values()]).item())
    )
    (record,) = trainer.step(1)
    assert record["grad_norm"] > 1e-3
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_the_running_mean_follows_the_weights(session, recipe, with_train):
    trainer = prepare(Job(print), session, with_train(recipe, ema_decay=0.75))
    start = {name: tensor.detach().clone() for name, tensor in trainer.parameters.items()}
    trainer.step(1)
    used = trainer.weights_to_use()
    for path, module in trainer.adapter.modules.items():
        expected = 0.75 * start[f"{path}.up"] + 0.25 * module.up.detach()
        torch.testing.assert_close(used.modules[path].up, expected)


def test_rank_stabilised_terms_have_an_alpha_that_any_loader_applies(session, recipe):
    plain, stable = (
        new_adapter(session, replace(recipe, lora=Lora(spec="attn=r16a4", rslora=on))).modules for on in (False, True)
    )
    assert {module.scale for module in plain.values()} == {4 / 16}
    assert {module.scale for module in stable.values()} == {4 / 4.0}


def test_tensors_trained_whole_take_the_bases_dtype_and_pass_gradients_back(tiny):
    base = tiny("u1", torch.bfloat16).generation
    full = {name: torch.ones(tensor.shape, requires_grad=True) for name, tensor in base.modules.items()}
    full[FINAL_NORM] = torch.ones(64, requires_grad=True)
    trained = with_trained_tensors(base, full)
    assert trained.norm.dtype == trained.modules["fm_modules.fm_head.0.weight"].dtype == torch.bfloat16
    (trained.norm.sum() + trained.modules["fm_modules.fm_head.0.bias"].sum()).backward()
    assert torch.equal(full[FINAL_NORM].grad, torch.ones(64))
    assert full[FINAL_NORM].grad.dtype == torch.float32
    assert full["fm_modules.fm_head.0.bias"].grad.sum() == len(full["fm_modules.fm_head.0.bias"])


@pytest.mark.parametrize("name", ["u1", "u1.5", "a3b"])
def test_every_kind_of_model_takes_steps(models, recipe, name):
    spec = {"a3b": Lora(spec="attn=r4;gen_moe_mlp=r4;gen_moe_router=r4")}.get(name, recipe.lora)
    data = replace(recipe.data, cap_max_pixels=64 * 64)
    trainer = prepare(Job(print), Session.open(models[name], "cpu"), replace(recipe, lora=spec, data=data))
    assert [trainer.step(number)[0]["grad_norm"] > 0 for number in (1, 2)] == [True, True]
