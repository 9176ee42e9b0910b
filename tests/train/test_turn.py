from dataclasses import replace

import pytest
import torch

from u1_core.errors import U1Error
from u1_core.jobs import Job
from u1_core.train.prepare import prepare
from u1_core.train.turn import MicroBatch, clean, draw_turn


@pytest.fixture
def turns(session, recipe, with_train):
    """Every turn of an epoch of the five pictures, which are of three sizes: batches of two, two and one."""
    trainer = prepare(Job(print), session, with_train(recipe, batch_size=2))
    batches = [trainer.data.order.draws(number) for number in range(3)]
    return [[draw_turn(trainer.config, trainer.recipe.train, trainer.data, n) for n in draws] for draws in batches]


def test_a_micro_batch_is_its_turns_side_by_side(turns):
    pair = next(batch for batch in turns if len(batch) == 2)
    batch = MicroBatch.of(pair)
    assert batch.z.shape == (2, *pair[0].picture.shape[1:])
    assert all(torch.equal(batch.z[row], turn.z[0]) for row, turn in enumerate(pair))
    assert all(torch.equal(batch.x0[row], clean(turn.picture)[0]) for row, turn in enumerate(pair))
    assert batch.t.tolist() == [turn.t.item() for turn in pair]
    assert batch.weights is None
    assert batch.dropout_seed == pair[0].dropout_seed


def test_a_picture_without_a_mask_beside_one_that_has_weighs_all_alike(turns):
    pair = next(batch for batch in turns if len(batch) == 2)
    mask = torch.zeros_like(pair[0].picture[:, 0])
    batch = MicroBatch.of([replace(pair[0], mask=mask), pair[1]])
    assert batch.weights[0].unique().tolist() == [0.0]
    assert batch.weights[1].unique().tolist() == [1.0]


def test_sizes_that_were_told_wrongly_are_refused(turns):
    first, second = turns[0][0], turns[1][0]
    with pytest.raises(U1Error, match=r"\.png is trained at \d+x\d+, and its set's width and height columns put it"):
        MicroBatch.of([first, second])


def test_without_page_locked_memory_a_batch_is_the_same(turns, monkeypatch):
    def refuse(tensor):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    batch, pinned = MicroBatch.of(turns[0]), MicroBatch.of(turns[0], pin=True)
    assert torch.equal(batch.z, pinned.z)
