"""Many prompts' K/V, wherever it is: in memory, in files, or to be built.

Neighbours are built together, a unit at a time, and always the same ones: a unit is the same bits whenever it is
built, so it may be let go, read back or built again. All that is missing is built in one pass over the understanding
tower, or, where the K/V of a pass would not fit in memory, in as few as it takes.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from u1_core.errors import U1Error
from u1_core.model.views import KVChunk, PrefixKV
from u1_core.prefix.files import PrefixFile, PrefixFolder
from u1_core.prefix.tiers import Tier, Tiers
from u1_core.prefix.units import PromptSet, Units
from u1_core.text.sequence import TokenSequence
from u1_core.weights.host_memory import host_memory_bytes

PASS_BYTES = min(8 * 2**30, host_memory_bytes() // 4)
"""K/V that one pass over the tower makes at most, before it goes to its tier or to disk."""

OnPrompts = Callable[[int], None]
Build = Callable[[Sequence[Sequence[TokenSequence]], torch.device, OnPrompts], list[list[PrefixKV]]]
"""(units, rest, on_prompts) -> the K/V of each unit's prompts on the device `rest`; see `build_blocks`."""


@dataclass(frozen=True)
class Room:
    """Bytes of K/V that may be kept: on the device, in host memory, and on disk in `folder` (None: not at all)."""

    device_bytes: int
    host_bytes: int
    disk_bytes: int = 0
    folder: Path | None = None


class PrefixStore(Sequence[PrefixKV]):
    """K/V of prompts by number. The head that they share is on the device, the rest where there is room for it."""

    def __init__(self, prompts: PromptSet, build: Build, room: Room, device: torch.device) -> None:
        self._set, self._units, self._build, self._device = prompts, Units(prompts), build, device
        memory = [Tier(device, room.device_bytes), Tier(torch.device("cpu"), room.host_bytes, device.type == "cuda")]
        self._tiers = Tiers([tier for tier in memory if tier.budget_bytes])
        self._folder = PrefixFolder(room.folder, room.disk_bytes) if room.folder and room.disk_bytes else None
        self._files: dict[range, PrefixFile | None] = {}
        self._head: KVChunk | None = None

    def __len__(self) -> int:
        return len(self._set.sequences)

    def __getitem__(self, number: int) -> PrefixKV:
        """As `fetch`."""
        return self.fetch(number)

    def fetch(self, number: int, soon: Iterable[int] = ()) -> PrefixKV:
        """The K/V of a prompt; numbers from `len` on are those that are alone.

        If it must be built, what is missing of those that are needed `soon` is built in the same pass.
        """
        if not 0 <= number < len(self) + len(self._set.alone):
            raise IndexError(number)
        prompt, tail = self._units.prompt(number), self._tiers.get(number)
        if tail is None:
            tail = self._from_file(number)
            if tail is None:
                tail = self._build_for(number, soon)
            self._tiers.put(number, tail)
        return PrefixKV((self._head, tail) if prompt.headed else (tail,), prompt.next_t)

    def fill(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Have all of it at hand: read what is kept and build what is not. What is too much is left to `fetch`.

        `on_progress` is told of what is built, in prompts times layers. What it raises leaves that pass unbuilt.
        """
        if self.total_bytes > self.capacity_bytes:
            return
        missing = [unit for unit in self._units.all() if not self._take_from_file(unit)]
        total, done = sum(map(len, missing)) * self._set.config.layers, 0

        def on_prompts(count: int) -> None:
            nonlocal done
            done += count
            on_progress(done, total)

        for units in self._passes(missing):
            for unit, tails in zip(units, self._run(units, on_prompts), strict=True):
                for number, tail in zip(unit, tails, strict=True):
                    if self._tiers.get(number) is None:
                        self._tiers.fill(number, tail)

    @property
    def n_bytes(self) -> int:
        """Bytes held in memory now, on the device and off it."""
        return self._tiers.n_bytes + (self._head.n_bytes if self._head else 0)

    @property
    def device_bytes(self) -> int:
        """Those of them that are on the device."""
        return self._tiers.bytes_on(self._device.type) + (self._head.n_bytes if self._head else 0)

    @property
    def total_bytes(self) -> int:
        """Bytes of the K/V of all that are not alone, without the head; an estimate for more than a block of them."""
        return self.estimated_bytes(len(self))

    def estimated_bytes(self, count: int) -> int:
        """Bytes of the K/V of `count` of the prompts, without the head."""
        return self._units.estimated_bytes(count)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that may be kept: on disk if there is a folder, else in memory."""
        return self._folder.budget_bytes if self._folder else self._tiers.budget_bytes

    def _build_for(self, number: int, soon: Iterable[int]) -> KVChunk:
        """Build a prompt's unit, and with it as many as one pass makes of those that will be asked for soon."""
        due = self._units.of(number)
        later = dict.fromkeys(self._units.of(each) for each in soon if self._tiers.get(each) is None)
        lacking = [unit for unit in later if unit != due and self._file(unit) is None]
        units = next(self._passes([due, *lacking]))
        numbers = [each for unit in units for each in unit]
        tails = dict(zip(numbers, (tail for built in self._run(units) for tail in built), strict=True))
        for each, tail in tails.items():
            if each != number and self._tiers.get(each) is None:
                self._tiers.put(each, tail)
        return tails[number]

    def _passes(self, units: Iterable[range]) -> Iterator[list[range]]:
        """Units that are built together: as many as there is memory for."""
        together, held = [], 0
        for unit in units:
            n_bytes = self._units.n_bytes(unit)
            if together and held + n_bytes > PASS_BYTES:
                yield together
                together, held = [], 0
            together.append(unit)
            held += n_bytes
        if together:
            yield together

    def _run(self, units: Sequence[range], on_prompts: OnPrompts = lambda count: None) -> list[list[KVChunk]]:
        """Build these units and write them to their files: the tails of each."""
        rest = self._tiers.device_for(sum(map(self._units.n_bytes, units)))
        built = self._build([[self._units.sequence(number) for number in unit] for unit in units], rest, on_prompts)
        heads = (prefix.chunks[0] for prefixes in built for prefix in prefixes if len(prefix.chunks) > 1)
        if self._head is None and (head := next(heads, None)):
            self._head = KVChunk(head.k.to(self._device), head.v.to(self._device))
            self._write(self._units.head_key, [head])
        tails = [[prefix.chunks[-1] for prefix in prefixes] for prefixes in built]
        for unit, chunks in zip(units, tails, strict=True):
            self._files[unit] = self._write(self._units.key(unit), chunks)
        return tails

    def _write(self, key: str, chunks: Sequence[KVChunk]) -> PrefixFile | None:
        if self._folder is None:
            return None
        try:
            self._folder.write(key, chunks)
        except U1Error as problem:
            logging.getLogger(__name__).warning("prefix K/V is not kept: %s", problem)
            self._folder = None
            return None
        return self._folder.open(key)

    def _take_from_file(self, unit: range) -> bool:
        """Whether a unit's file is there, having read from it what there is memory for."""
        if self._file(unit) is None or not self._head_is_there(unit):
            return False
        for number in unit:
            if self._tiers.fits(self._units.n_bytes(range(number, number + 1))):
                tail = self._from_file(number)
                if tail is None:
                    return False
                self._tiers.fill(number, tail)
        return True

    def _from_file(self, number: int) -> KVChunk | None:
        unit = self._units.of(number)
        file = self._file(unit)
        if file is None or not self._head_is_there(unit):
            return None
        tail = file.read(number - unit.start, self._units.shape(self._units.prompt(number).tokens), self._set.dtype)
        if tail is None:
            self._files[unit] = None
        return tail

    def _file(self, unit: range) -> PrefixFile | None:
        if unit not in self._files and self._folder:
            self._files[unit] = self._folder.open(self._units.key(unit))
        return self._files.get(unit)

    def _head_is_there(self, unit: range) -> bool:
        """Whether the head is at hand if any of these prompts needs it, having read it if it was not."""
        if self._head is None and self._folder and any(self._units.prompt(number).headed for number in unit):
            file = self._folder.open(self._units.head_key)
            head = file and file.read(0, self._units.shape(len(self._set.head)), self._set.dtype)
            if head is None:
                return False
            self._head = KVChunk(head.k.to(self._device), head.v.to(self._device))
        return True
