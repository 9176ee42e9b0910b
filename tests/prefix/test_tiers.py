import pytest
import torch

from u1_core.model.views import KVChunk
from u1_core.prefix.tiers import Tier, Tiers

CPU, META = torch.device("cpu"), torch.device("meta")
SIZE = 2 * 3 * 4
"""Bytes of a chunk of one token: K and V of three fp32 numbers."""


def chunk(value: float, tokens: int = 1) -> KVChunk:
    k = torch.full((1, tokens, 1, 3), float(value))
    return KVChunk(k, k + 0.5)


def value(found: KVChunk | None) -> float | None:
    return None if found is None else float(found.k[0, 0, 0, 0])


def test_what_was_used_longest_ago_goes_first():
    tier = Tier(CPU, 3 * SIZE)
    for number in range(3):
        assert tier.put(number, chunk(number)) == []
    assert value(tier.get(0)) == 0
    ((number, gone),) = tier.put(3, chunk(3))
    assert (number, value(gone)) == (1, 1)
    assert [value(tier.get(number)) for number in range(4)] == [0, None, 2, 3]
    assert tier.n_bytes == 3 * SIZE


def test_a_large_chunk_takes_the_place_of_several_and_one_too_large_of_none():
    tier = Tier(CPU, 3 * SIZE)
    for number in range(3):
        tier.put(number, chunk(number))
    assert [number for number, _ in tier.put(3, chunk(3, tokens=2))] == [0, 1]
    assert tier.n_bytes == 3 * SIZE
    assert [number for number, _ in tier.put(4, chunk(4, tokens=4))] == [4]
    assert [value(tier.get(number)) for number in (2, 3, 4)] == [2, 3, None]


def test_fits_says_what_can_be_taken_without_letting_go():
    tier = Tier(CPU, 3 * SIZE)
    tier.put(0, chunk(0))
    assert (tier.fits(2 * SIZE), tier.fits(2 * SIZE + 1)) == (True, False)


def test_a_copy_is_held_where_the_tier_is():
    tier = Tier(META, 10 * SIZE)
    tier.put(0, chunk(1))
    held = tier.get(0)
    assert (held.k.device, held.v.device, held.k.shape) == (META, META, (1, 1, 1, 3))


def test_what_the_first_has_no_room_for_goes_to_the_second_and_from_there_away():
    first, second = Tier(CPU, 2 * SIZE), Tier(CPU, SIZE)
    tiers = Tiers([first, second])
    for number in range(4):
        tiers.put(number, chunk(number))
    assert [value(first.get(number)) for number in range(4)] == [None, None, 2, 3]
    assert [value(second.get(number)) for number in range(4)] == [None, 1, None, None]
    assert [value(tiers.get(number)) for number in range(4)] == [None, 1, 2, 3]
    assert (tiers.n_bytes, tiers.budget_bytes, tiers.bytes_on("cpu"), tiers.bytes_on("cuda")) == (72, 72, 72, 0)


def test_filling_lets_nothing_go():
    tiers = Tiers([Tier(META, SIZE), Tier(CPU, SIZE)])
    for number in range(3):
        tiers.fill(number, chunk(number))
    assert [each and each.k.device for each in map(tiers.get, range(3))] == [META, CPU, None]
    assert not tiers.fits(1)


def test_chunks_are_made_in_the_tier_that_takes_them_all():
    tiers = Tiers([Tier(META, 2 * SIZE), Tier(CPU, 9 * SIZE)])
    assert [tiers.device_for(count * SIZE) for count in (2, 3, 10)] == [META, CPU, CPU]
    assert Tiers([]).device_for(1) == CPU


@pytest.mark.parametrize(("n_bytes", "taken"), [(1, 1), (3, 4), (4, 4), (5, 8), (6_540_000, 8_388_608)])
def test_page_locked_memory_counts_as_it_is_rounded(n_bytes, taken):
    tier = Tier(CPU, taken, pin=True)
    assert tier.fits(n_bytes)
    tier.budget_bytes -= 1
    assert not tier.fits(n_bytes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locks memory")
def test_the_hosts_tier_is_page_locked():
    tier = Tier(CPU, 64, pin=True)
    tier.put(0, chunk(2))
    held = tier.get(0)
    assert held.k.is_pinned()
    assert (value(held), float(held.v[0, 0, 0, 2])) == (2, 2.5)
    assert tier.n_bytes == 32
