from collections import Counter

import pytest

from u1_core.train.order import Order
from u1_core.train.recipe import Train

WIDE, TALL, ODD = (96, 64), (64, 96), (64, 64)
SIZES = [WIDE, TALL, WIDE, WIDE, ODD, TALL, WIDE, TALL, WIDE]


def order(batch_size, shuffle=False, seed=0, sizes=SIZES):
    return Order(Train(batch_size=batch_size, shuffle=shuffle, seed=seed), len(sizes), sizes.__getitem__)


def batches(order, numbers):
    return [[order.turn_at(draw) for draw in order.draws(number)] for number in numbers]


def test_pictures_set_out_when_there_are_enough_of_their_size():
    found = batches(order(2), range(6))
    # 1 waits for 5 and 4 to the end; 8 is the fifth wide one.
    assert found == [[0, 2], [1, 5], [3, 6], [4], [7], [8]]


def test_draws_count_on_over_batches_and_epochs():
    many = order(2, shuffle=True)
    draws = [draw for number in range(18) for draw in many.draws(number)]
    assert draws == list(range(27))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 20])
def test_an_epoch_has_every_picture_once_in_batches_of_one_size(batch_size):
    shuffled = order(batch_size, shuffle=True, seed=3)
    per_epoch = sum(-(-count // batch_size) for count in Counter(SIZES).values())
    seen = []
    for epoch in range(3):
        found = batches(shuffled, range(epoch * per_epoch, (epoch + 1) * per_epoch))
        assert sorted(turn for batch in found for turn in batch) == list(range(len(SIZES)))
        assert all(len({SIZES[turn] for turn in batch}) == 1 for batch in found)
        assert max(map(len, found)) <= batch_size
        seen.append(found)
    assert seen[0] != seen[1]
    assert batches(order(batch_size, shuffle=True, seed=3), range(per_epoch)) == seen[0]


def test_only_leftovers_make_smaller_batches_and_they_come_last():
    sizes = [WIDE, TALL] * 50 + [ODD]
    found = batches(order(4, shuffle=True, seed=1, sizes=sizes), range(12 + 12 + 3))
    lengths = [len(batch) for batch in found]
    assert lengths == [4] * 24 + sorted(lengths[24:], key=lengths[24:].index)
    assert sorted(lengths[24:]) == [1, 2, 2]


def test_one_at_a_time_no_size_is_asked_for():
    alone = Order(Train(shuffle=False), 3, None)
    assert batches(alone, range(4)) == [[0], [1], [2], [0]]
