import itertools

import torch

from u1_core.train.rng import BLOCK, WINDOW, generator, sample_of_draw


def test_numbers_depend_on_what_they_are_for_and_on_nothing_else():
    def numbers(*key):
        return torch.randn(4, generator=generator(*key)).tolist()

    first = numbers(0, 7, "a.png", "noise")
    torch.rand(1)
    assert numbers(0, 7, "a.png", "noise") == first
    others = [(1, 7, "a.png", "noise"), (0, 8, "a.png", "noise"), (0, 7, "b.png", "noise"), (0, 7, "a.png", "t")]
    assert all(numbers(*key) != first for key in others)
    # Keys are not run together: (1, 23) and (12, 3) are different draws.
    assert numbers(1, 23, "a", "t") != numbers(12, 3, "a", "t")


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own():
    epochs = [[sample_of_draw(5, draw, 9, True) for draw in range(9 * epoch, 9 * epoch + 9)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [sample_of_draw(5, draw, 9, True) for draw in range(9)] == epochs[0]
    assert [sample_of_draw(6, draw, 9, True) for draw in range(9)] != epochs[0]


def test_without_shuffle_samples_come_by_number():
    assert [sample_of_draw(0, draw, 3, False) for draw in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_large_set_is_shuffled_in_windows_of_a_few_blocks():
    count = 5 * WINDOW + 77
    epochs = [[sample_of_draw(1, draw, count, True) for draw in range(e * count, (e + 1) * count)] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
        for start in range(0, count, WINDOW):
            blocks = {sample // BLOCK for sample in epoch[start : start + WINDOW]}
            assert len(blocks) <= WINDOW // BLOCK + 1  # the short last block may shift the others by a part
    assert epochs[0] != epochs[1]
    first = epochs[0][:WINDOW]
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(first)) < WINDOW / 50
