import pytest
import torch

from u1_core.model.views import KVChunk, PrefixKV
from u1_core.prefix import store as module
from u1_core.prefix.build import opens_with
from u1_core.prefix.store import PrefixStore, Room
from u1_core.prefix.units import BLOCK, PromptSet

CPU, HEAD = torch.device("cpu"), tuple(range(16))
TAIL = 5
PLENTY = 10**9


class Builder:
    """Stands in for the understanding tower: K/V that tell the prompt, and a list of what each pass made."""

    def __init__(self, config):
        self.config, self.passes = config, []

    def __call__(self, units, rest, on_prompts):
        self.passes.append([[int(each.ids[-1]) for each in unit] for unit in units])
        for unit in units * self.config.layers:
            on_prompts(len(unit))
        head = self.chunk(torch.tensor(HEAD))
        return [
            [
                PrefixKV((head, self.chunk(each.ids[len(HEAD) :])), each.next_t)
                if opens_with(each, HEAD)
                else PrefixKV((self.chunk(each.ids),), each.next_t)
                for each in unit
            ]
            for unit in units
        ]

    def chunk(self, ids):
        k = ids.float()[None, :, None, None].repeat(self.config.layers, 1, self.config.kv_heads, self.config.head_dim)
        return KVChunk(k, k + 0.5)


@pytest.fixture
def builder(tiny):
    return Builder(tiny("u1").config)


@pytest.fixture
def make(builder, sequence):
    """(count, room, alone=0, salt="s") -> a store of prompts of which each ends with its number + 100."""

    def make_store(count: int, room: Room, alone: int = 0, salt: str = "s") -> PrefixStore:
        prompts = [sequence(builder.config, [*HEAD, *[50] * (TAIL - 1), 100 + number]) for number in range(count)]
        others = [sequence(builder.config, [7] * 3 + [100 + count + number]) for number in range(alone)]
        return PrefixStore(PromptSet(builder.config, torch.float32, prompts, HEAD, salt, others), builder, room, CPU)

    return make_store


@pytest.fixture
def token_bytes(tiny):
    return 2 * tiny("u1").config.kv_token_bytes


def number_of(prefix: PrefixKV) -> int:
    last = prefix.chunks[-1]
    assert torch.equal(last.v, last.k + 0.5)
    return int(last.k[0, -1, 0, 0]) - 100


def units_built(builder) -> list[list[int]]:
    """The first prompt's number of every unit in each pass."""
    return [[unit[0] - 100 for unit in units] for units in builder.passes]


def test_what_is_built_is_told_over_all_passes_and_may_be_broken_off(make, builder, token_bytes, monkeypatch, tmp_path):
    monkeypatch.setattr("u1_core.prefix.store.PASS_BYTES", BLOCK * TAIL * token_bytes)
    room, layers, seen = Room(0, PLENTY, PLENTY, tmp_path), builder.config.layers, []

    def first_pass_only(done: int, total: int) -> None:
        seen.append((done, total))
        if done > BLOCK * layers:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        make(BLOCK + 3, room).fill(first_pass_only)
    total = (BLOCK + 3) * layers
    assert seen == [*((BLOCK * layer, total) for layer in range(1, layers + 1)), (BLOCK * layers + 3, total)]
    seen.clear()
    make(BLOCK + 3, room).fill(lambda done, total: seen.append((done, total)))  # the first pass has been kept
    assert seen == [(3 * layer, 3 * layers) for layer in range(1, layers + 1)]


def test_everything_is_built_in_one_pass_and_the_head_kept_once(make, builder, token_bytes):
    store = make(2 * BLOCK + 3, Room(0, PLENTY), alone=1)
    store.fill()
    assert units_built(builder) == [[0, BLOCK, 2 * BLOCK, 2 * BLOCK + 3]]
    assert [number_of(store[number]) for number in range(2 * BLOCK + 4)] == list(range(2 * BLOCK + 4))
    assert len(builder.passes) == 1
    assert store.n_bytes == (len(HEAD) + (2 * BLOCK + 3) * TAIL + 4) * token_bytes
    assert store[0].chunks[0] is store[2 * BLOCK].chunks[0]
    assert [store[number].next_t for number in (0, 2 * BLOCK + 3)] == [len(HEAD) + TAIL, 4]
    assert len(store) == 2 * BLOCK + 3
    with pytest.raises(IndexError):
        store[2 * BLOCK + 4]


def test_a_pass_makes_no_more_than_there_is_memory_for(make, builder, token_bytes, monkeypatch):
    monkeypatch.setattr(module, "PASS_BYTES", 2 * BLOCK * TAIL * token_bytes)
    make(5 * BLOCK, Room(0, PLENTY)).fill()
    assert units_built(builder) == [[0, BLOCK], [2 * BLOCK, 3 * BLOCK], [4 * BLOCK]]


def test_a_session_later_it_is_read_and_not_built(make, builder, tmp_path):
    room = Room(0, PLENTY, PLENTY, tmp_path)
    first = make(BLOCK + 3, room, alone=1)
    first.fill()
    again = make(BLOCK + 3, room, alone=1)
    again.fill()
    for number in range(BLOCK + 4):
        one, other = first[number], again[number]
        assert one.next_t == other.next_t
        assert all(
            torch.equal(a.k, b.k) and torch.equal(a.v, b.v) for a, b in zip(one.chunks, other.chunks, strict=True)
        )
    assert len(builder.passes) == 1
    assert again.n_bytes == first.n_bytes
    make(BLOCK + 3, room, salt="another model").fill()
    assert len(builder.passes) == 2


def test_only_what_has_changed_is_built(make, builder, tmp_path):
    room = Room(0, PLENTY, PLENTY, tmp_path)
    make(BLOCK + 3, room).fill()
    make(BLOCK + 4, room).fill()
    assert units_built(builder) == [[0, BLOCK], [BLOCK]]


@pytest.mark.parametrize("memory", [0, 40])
def test_what_memory_has_no_room_for_comes_from_disk(make, builder, token_bytes, tmp_path, memory):
    room = Room(0, memory * TAIL * token_bytes, PLENTY, tmp_path)
    for _ in range(2):  # just built, and found
        store = make(BLOCK + 3, room)
        store.fill()
        assert store.n_bytes == (len(HEAD) + memory * TAIL) * token_bytes
        for number in (0, BLOCK, 7, BLOCK + 2, 0, 100):
            assert number_of(store[number]) == number
        assert store.n_bytes == (len(HEAD) + memory * TAIL) * token_bytes
    assert len(builder.passes) == 1


@pytest.mark.parametrize("damaged", ["unit", "head"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_damaged_file_is_built_again(make, builder, tmp_path, damaged, when):
    """Also where it is damaged after the start, and not at hand in memory."""
    room = Room(0, 0, PLENTY, tmp_path)
    store = make(BLOCK + 3, room)
    store.fill()
    unit, head = (tmp_path / f"{key}.safetensors" for key in (store._units.key(range(BLOCK)), store._units.head_key))
    path = unit if damaged == "unit" else head
    whole = path.read_bytes()
    if when == "before":
        store = make(BLOCK + 3, room)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    store.fill()
    assert [number_of(store[number]) for number in (BLOCK + 1, BLOCK - 1, 3)] == [BLOCK + 1, BLOCK - 1, 3]
    rebuilt = {"unit": [[0]], "head": [[0, BLOCK]] if when == "before" else []}[damaged]
    assert units_built(builder)[1:] == rebuilt
    if rebuilt:
        assert path.read_bytes() == whole


def test_what_is_too_much_for_the_folder_is_built_when_it_is_needed(make, builder, token_bytes, tmp_path):
    block = BLOCK * TAIL * token_bytes
    store = make(4 * BLOCK, Room(0, block // 4, int(2.5 * block), tmp_path))
    store.fill()
    assert builder.passes == []
    order = [3 * BLOCK + 5, BLOCK, 3 * BLOCK, BLOCK + 1, 0, 2 * BLOCK, 1]
    for place, number in enumerate(order):
        assert number_of(store.fetch(number, order[place + 1 : place + 4])) == number
    assert units_built(builder) == [[3 * BLOCK, BLOCK], [0, 2 * BLOCK]]
    held = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert held <= store.capacity_bytes


def test_without_a_folder_memory_is_all_there_is(make, builder, token_bytes):
    block = BLOCK * TAIL * token_bytes
    store = make(3 * BLOCK, Room(0, 2 * block))
    assert (store.total_bytes, store.capacity_bytes, store.estimated_bytes(BLOCK)) == (3 * block, 2 * block, block)
    store.fill()
    assert [number_of(store[number]) for number in (0, BLOCK, 1, BLOCK + 1)] == [0, BLOCK, 1, BLOCK + 1]
    assert units_built(builder) == [[0], [BLOCK]]
    assert number_of(store[2 * BLOCK]) == 2 * BLOCK
    assert number_of(store[5]) == 5
    assert units_built(builder)[2:] == [[2 * BLOCK], [0]]


def test_a_folder_that_takes_nothing_is_done_without(make, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    store = make(2 * BLOCK, Room(0, PLENTY, PLENTY, tmp_path / "file"))
    store.fill()
    assert number_of(store[2 * BLOCK - 1]) == 2 * BLOCK - 1
    assert [record.message.startswith("prefix K/V is not kept: ") for record in caplog.records] == [True]
