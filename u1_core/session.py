"""One loaded model on one device, the LoRAs in use, and the lease that says who may use the device now."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path

import torch

from u1_core.errors import U1Error
from u1_core.lease import Lease
from u1_core.lora.adapter import Adapter, same_adapters, tower_terms
from u1_core.lora.fold import FoldedSource
from u1_core.lora.full import with_full_tensors
from u1_core.model.config import GENERATION, UNDERSTANDING, U1Config
from u1_core.model.linear import TowerTerms
from u1_core.model.views import Generation, Understanding
from u1_core.plan.budget import AUTO, Budget, free_bytes
from u1_core.plan.placing import Placing
from u1_core.plan.plan import Plan
from u1_core.plan.work import TrainingWork, Work
from u1_core.prefix.build import BuiltPrefix, build_prefixes
from u1_core.prefix.decode import GrowingPrefix
from u1_core.text.sequence import TokenSequence
from u1_core.text.tokenizer import Tokenizer
from u1_core.weights.gguf_file import GgufSource
from u1_core.weights.gguf_layers import QuantisedLayers, largest_layer_bytes
from u1_core.weights.layout import layer_bytes
from u1_core.weights.on_disk import LayersOnDisk
from u1_core.weights.placement import Placement
from u1_core.weights.read_ahead import on_to_generation
from u1_core.weights.rewrite import rewrite
from u1_core.weights.ring import StreamedLayers
from u1_core.weights.snapshot import GGUF, Snapshot
from u1_core.weights.store import Progress, load_generation, load_understanding

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Session:
    """A model opened for use. Its towers are read when they are first needed.

    `lease` is held by whoever computes on the device: a sampler for a picture, a trainer for a step.
    """

    def __init__(
        self,
        snapshot: Snapshot | GgufSource,
        device: torch.device,
        dtype: torch.dtype,
        on_progress: Progress | None,
        placement: Placement | None = None,
        budget: Budget = AUTO,
    ) -> None:
        self.snapshot = snapshot
        self.config: U1Config = snapshot.config
        self.device = device
        self.dtype = dtype
        self.adapters: list[Adapter] = []
        self.lease = Lease()
        self._folded: FoldedSource | None = None
        self._kept_unfolded = 0
        self._prompt_bytes = 0
        """Device memory that what is read of the understanding tower may stay in."""
        self._on_progress = on_progress
        self._placing = Placing(self.config, dtype, device, budget, placement, fixed=placement is not None)
        if isinstance(snapshot, GgufSource):
            self._placing.copied_bytes = largest_layer_bytes(snapshot, GENERATION, dtype)

    @classmethod
    def open(
        cls,
        model: Path | str,
        device: str = "auto",
        dtype: str = "auto",
        on_progress: Progress | None = None,
        placement: Placement | None = None,
        budget: str | Budget = AUTO,
    ) -> "Session":
        """Open a snapshot folder, or a .safetensors or .gguf file with its config beside it. Reads headers only.

        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"; dtype: "auto" (bf16 on a GPU, fp32 on a CPU),
        "bf16" or "fp32". `budget` is what may be taken of a card's memory (`Budget.parse`): where the generation
        tower's layers are to be follows from it, unless `placement` says so. Raises U1Error for a model that does not
        check out, and for a budget on a CPU.
        """
        chosen, budget = choose_device(device), Budget.parse(budget)
        if chosen.type == "cpu" and budget.mode != "auto":
            raise U1Error(f"budget {budget}: it is for a card's memory, and the device is cpu; leave it at auto")
        if dtype not in ("auto", *DTYPES):
            raise U1Error(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
        if dtype == "auto":
            dtype = "fp32" if chosen.type == "cpu" else "bf16"
        source = GgufSource if Path(model).suffix.lower() == GGUF else Snapshot
        return cls(source.open(Path(model)), chosen, DTYPES[dtype], on_progress, placement, budget)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, from the files beside its weights."""
        return Tokenizer.from_folder(self.snapshot.folder)

    @cached_property
    @torch.inference_mode(False)  # training saves weights for backward, whoever had them read
    def understanding(self) -> Understanding:
        """The understanding tower: on the device if both towers fit there, else read layer by layer as it is used, and
        as many layers then stay as drawing leaves room for."""
        resident = self._both_towers_fit()
        understanding = load_understanding(self._source, self.device, self.dtype, resident, self._on_progress)
        layers = understanding.layers
        if isinstance(layers, QuantisedLayers) and 2 * layers.n_bytes < self._room_bytes():
            layers.hold()  # as many of both towers fit that did not fit dequantised
        if isinstance(layers, LayersOnDisk):
            layers.hold(self._prompt_bytes)
        return understanding

    @cached_property
    @torch.inference_mode(False)  # training saves weights for backward, whoever had them read
    def base_generation(self) -> Generation:
        """The generation tower as the checkpoint has it, placed as was asked or as the budget allows; on a CPU, all of
        it is there."""
        if not self._placing.placement:
            self.make_room(self._placing.native_shape())
        placement = self._placing.placement
        everywhere = placement is None or len(placement.resident) == self.config.layers
        on_to_generation()
        return load_generation(self._source, self.device, self.dtype, everywhere or placement, self._on_progress)

    def plan_training(self, work: TrainingWork, already_bytes: int = 0) -> Plan | None:
        """How to train within the budget; the generation tower is placed by it. None on a CPU: nothing to plan there.

        In the plan's eyes, what is on the card now stays there; `already_bytes` of it belong to the work itself. The
        lease is to be held: the card may have to be measured. Whoever has the tower asks for it anew. Raises U1Error
        where the budget is too small.
        """
        if self.device.type == "cpu":
            return None
        self._spend_on_prompts(0)
        plan = self._plan(work, already_bytes)
        self.place(plan.placement)
        # A picture that is drawn in between keeps nothing for backward: two rows of it take less than one in training.
        self._placing.made_for((work.batch, 3, work.height, work.width), branches=2)
        return plan

    def make_room(self, shape: Sequence[int], branches: int = 2, prefix_tokens: int = 512) -> None:
        """Before pictures (B, 3, H, W) are drawn with so many guidance branches: if the generation tower leaves no room
        for that, or is not placed yet, place it so that it does.

        While a run is training the tower stays where it is. Raises U1Error where the budget is too small.
        """
        stays = self._kept_unfolded and self._placing.placement
        if self.device.type == "cpu" or stays or not self._placing.lacks_room(shape, branches):
            return
        self._spend_on_prompts(0)
        plan = self._plan(self._placing.sampling_work(shape, branches, prefix_tokens))
        self.place(plan.placement)
        self._placing.made_for(shape, branches)
        self._spend_on_prompts(self._placing.spare_bytes(plan))

    def place(self, placement: Placement) -> None:
        """Have the generation tower lie so. If it is loaded and lies otherwise it is let go, and read when it is next
        asked for; whoever has it asks anew."""
        if placement == self._placing.placement:
            return
        self._placing.placement = placement
        tower = self.__dict__.pop("base_generation", None)
        if tower and isinstance(tower.layers, StreamedLayers):
            tower.layers.close()

    def _spend_on_prompts(self, n_bytes: int) -> None:
        self._prompt_bytes = n_bytes
        understanding = self.__dict__.get("understanding")
        if understanding and isinstance(understanding.layers, LayersOnDisk):
            understanding.layers.hold(n_bytes)

    def _plan(self, work: Work, already_bytes: int = 0) -> Plan:
        loaded, held = "base_generation" in self.__dict__, bool(self._kept_unfolded)
        try:
            return self._placing.plan(work, loaded, held, already_bytes)
        except torch.OutOfMemoryError:
            if not loaded or held:
                raise
        # Measuring takes some memory, and the tower is about to be placed anew.
        self.place(Placement(frozenset()))
        return self._placing.plan(work, False, held, already_bytes)

    @property
    def generation(self) -> Generation:
        """The generation tower with the fully trained tensors of the adapters in place of its own."""
        return with_full_tensors(self.base_generation, self.adapters)

    def terms(self, tower: str) -> TowerTerms:
        """The low-rank terms of every adapter for one tower, at their present strengths."""
        return tower_terms(self.config, self.adapters, tower)

    def use(self, adapters: Sequence[Adapter]) -> None:
        """Work with these LoRAs from now on; the weights stay as they are. Raises U1Error for one that does not fit."""
        for adapter in adapters:
            adapter.check(self.config)
        self.adapters = [adapter.to(self.device, self.dtype) for adapter in adapters]

    @property
    def folded(self) -> tuple[Adapter, ...]:
        """The LoRAs that are in the weights themselves."""
        return self._folded.adapters if self._folded else ()

    def fold(self, adapters: Sequence[Adapter]) -> None:
        """Add these LoRAs to the weights, in place of those folded in before: to the bit what `u1 lora merge` writes in
        the session's dtype. (Unless it is told one, it writes the checkpoint's.)

        A step then costs what the base's does, and what is in `use` comes on top. Where the towers are loaded, only the
        tensors that change are read again from the checkpoint. Adapters are given as they were read from their files.
        Raises U1Error for one that does not fit, on a quantised base, and while a run is training on these weights.
        """
        with self.lease:
            if same_adapters(self.folded, adapters):
                return
            if isinstance(self.snapshot, GgufSource):
                raise U1Error(f"{self.snapshot.path}: LoRAs cannot be folded into a quantised base; use them beside it")
            if self._kept_unfolded:
                raise U1Error(
                    f"{self.snapshot.path}: a run is training on these weights, so no LoRA can be folded into them or "
                    "taken out; use it beside them until the run has ended"
                )
            # Strengths may be changed later on: what is folded is what they are now.
            held = [replace(each, modules=dict(each.modules), full=dict(each.full)) for each in adapters]
            before, self._folded = self._folded, FoldedSource(self.snapshot, held) if held else None
            names = {name for source in (before, self._folded) if source for name in source.changed}
            try:
                self._rewrite_towers(names)
            except BaseException:
                # Some tensors are the one thing and some the other: read all of them anew when they are next needed.
                self._folded = before
                self.__dict__.pop("understanding", None), self.__dict__.pop("base_generation", None)
                raise

    def unfold(self) -> None:
        """Take out what `fold` has added: the weights are the checkpoint's own bytes again."""
        self.fold(())

    @contextmanager
    def unfolded(self) -> Iterator[None]:
        """Inside, the weights stay the checkpoint's own, as training needs them. Raises U1Error if they are not."""
        with self.lease.as_it_is():
            if self._folded:
                raise U1Error(
                    f"{self.snapshot.path}: LoRAs are folded into these weights, and training needs the checkpoint's "
                    "own; unfold them (runtime.upstream_lora_path trains on top of a LoRA)"
                )
            self._kept_unfolded += 1
        try:
            yield
        finally:
            with self.lease.as_it_is():
                self._kept_unfolded -= 1

    def build_prefixes(self, sequences: Sequence[TokenSequence]) -> list[BuiltPrefix]:
        """Prompts' K/V, all in one pass over the understanding tower."""
        return build_prefixes(self.config, self.understanding, sequences, self.terms(UNDERSTANDING))

    def grow(self, built: BuiltPrefix) -> GrowingPrefix:
        """A built prompt that more can be said to."""
        return GrowingPrefix(self.config, self.understanding, built, self.terms(UNDERSTANDING))

    def speaking(self, tokens: int) -> Understanding:
        """The understanding tower for something that is said token by token, while the lease is held: so many tokens,
        those of the prompt and its pictures included.

        If it is read as it is used, lm_head and as many layers as there is room for stay on the device: in what drawing
        leaves, or, as long as the generation tower has no place, in what weights may take, less the tokens' K/V.
        """
        understanding, layers = self.understanding, self.understanding.layers
        if not isinstance(layers, LayersOnDisk):
            return understanding
        if not self._placing.placement:  # whoever places it has this back first
            kv_bytes = tokens * self.config.kv_token_bytes * self.dtype.itemsize // 2
            self._spend_on_prompts(self._placing.beside_others(self._room_bytes() - kv_bytes, layers.held_bytes))
        left = self._prompt_bytes - understanding.lm_head.nbytes
        if left < 0:
            return understanding
        layers.hold(left)
        return replace(understanding, lm_head=understanding.lm_head.to(self.device))

    def release_understanding(self) -> None:
        """Let the understanding tower go; it is read again when a prompt is next built."""
        if self.__dict__.pop("understanding", None) and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def generator(self, seed: int) -> torch.Generator:
        """A random generator on the session's device."""
        return torch.Generator(self.device).manual_seed(seed)

    @property
    def _source(self) -> Snapshot | GgufSource | FoldedSource:
        """Where weights are read from."""
        return self._folded or self.snapshot

    def _rewrite_towers(self, names: set[str]) -> None:
        """Read these tensors anew wherever they are loaded."""
        for tower in ("understanding", "base_generation"):
            if tower in self.__dict__:
                rewrite(self.config, self.__dict__[tower], self._source, names)

    def _both_towers_fit(self) -> bool:
        """On the device, with a quarter of its free memory left to work in."""
        places = product((UNDERSTANDING, GENERATION), range(self.config.layers))
        needed = sum(layer_bytes(self.config, tower, index, self.dtype) for tower, index in places)
        return needed < self._room_bytes()

    def _room_bytes(self) -> float:
        """Bytes that weights may take on the device: three quarters of the budget, or of what is free there now."""
        if self.device.type == "cpu":
            return math.inf
        return 0.75 * (self._placing.budget.n_bytes or free_bytes(self.device))


def choose_device(name: str) -> torch.device:
    """ "auto" (a card if there is one), "cpu", "cuda" or "cuda:1" as a device. Raises U1Error."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise U1Error(f"device {name!r} is none of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise U1Error(f"device {name!r}: this PyTorch sees no CUDA card; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise U1Error(
            f"device {name!r}: this PyTorch sees {torch.cuda.device_count()} CUDA card(s), counted from cuda:0"
        )
    return device
