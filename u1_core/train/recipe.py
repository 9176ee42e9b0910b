"""A run's settings: every field with its meaning, unit, default and what it may be, said once, here.

Sections and names are the reference trainer's, so that its config files load unchanged; defaults are its recommended
recipe. `recipe_file` reads and writes them as YAML.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from u1_core.lora.plan import DEFAULT_UNFROZEN
from u1_core.lora.spec import PRESETS
from u1_core.train.settings import (
    ABOVE_ZERO,
    ANY_NUMBER,
    ANYTHING,
    AT_LEAST_ONE,
    BUDGET,
    COUNT,
    COUNT_OR_NONE,
    DEVICE,
    FOLDER_NAME,
    LORA_SPEC,
    PATTERN,
    PIXELS,
    SEED,
    SHARE,
    SHARE_BELOW_ONE,
    SOME_TEXT,
    SWITCH,
    ZERO_OR_MORE,
    RecipeError,
    Section,
    one_of,
    section_prefix,
    setting,
)


@dataclass(frozen=True)
class Data(Section):
    """The pictures and captions."""

    data_dir: str = setting(
        "dataset/my_style",
        "folder of pictures with same-name .txt captions, or a .parquet or .arrow file",
        SOME_TEXT,
        free=True,
    )
    cap_max_pixels: int = setting(2048 * 2048, "largest size a picture is trained at", PIXELS, "pixels")
    snap_bucket: bool = setting(
        True, "crop each picture to the official aspect ratio nearest to its own; else keep its own ratio", SWITCH
    )
    use_think_labels: bool = setting(
        False, "put the text after a caption's ---think--- line into the think block of the prompt", SWITCH
    )
    n_samples: int | None = setting(None, "use only the first so many pictures; null is all", COUNT, "pictures")
    fit: str = setting(
        "crop",
        "crop scales a picture to cover its size and cuts evenly; stretch distorts it",
        one_of("crop", "stretch"),
    )
    upscale: str = setting(
        "allow",
        "what becomes of a picture smaller than its size: allow enlarges it, skip leaves it out, shrink_bucket trains "
        "it at the largest size of that ratio that it fills",
        one_of("allow", "skip", "shrink_bucket"),
    )
    masks: str = setting(
        "none",
        "what weighs each pixel's loss, white fully and black not at all: NAME.mask.png beside the picture (file), or "
        "the picture's own transparency (alpha)",
        one_of("none", "file", "alpha"),
    )
    cache_mb: int = setting(1024, "memory for decoded pictures; more are decoded again", COUNT_OR_NONE, "MB", free=True)
    workers: int = setting(
        4, "threads that decode ahead; 0 decodes when its turn has come", COUNT_OR_NONE, "threads", free=True
    )


@dataclass(frozen=True)
class Style(Section):
    """How a caption becomes a prompt."""

    trigger: str = setting("", 'words put before every caption, as "{trigger}, {caption}"', ANYTHING)
    untriggered: tuple[str, ...] = setting(
        (),
        "pictures whose captions get no trigger, by their names in the set, * for anything: plain/* is a folder. "
        "Pictures in the model's own style, trained on so, keep the style to the trigger",
        SOME_TEXT,
    )
    prompt_template: str = setting(
        "official", "the prompt that sampling uses, or the bare caption", one_of("official", "plain")
    )

    def triggers(self, name: str) -> bool:
        """Whether the picture of this name gets the trigger."""
        return not any(fnmatchcase(name, pattern) for pattern in self.untriggered)


@dataclass(frozen=True)
class Lora(Section):
    """Which modules get low-rank terms."""

    preset: str | None = setting(
        "attn_mlp_no_head", "a named choice of modules and ranks; null is none", one_of(*PRESETS)
    )
    spec: str | None = setting(None, 'modules and ranks in the spec language, "attn=r64a64;mlp=r32"; wins', LORA_SPEC)
    dropout: float = setting(0.0, "share of each term's inputs zeroed while training", SHARE_BELOW_ONE)
    rslora: bool = setting(False, "rank-stabilised: scale terms by alpha / sqrt(rank) in place of alpha / rank", SWITCH)


@dataclass(frozen=True)
class Train(Section):
    """Objective and optimisation."""

    steps: int = setting(6000, "updates of the weights", COUNT, "steps")
    lr: float = setting(5e-5, "learning rate; prodigy finds its own and takes 1 here", ABOVE_ZERO)
    lr_full: float | None = setting(None, "learning rate of the tensors trained whole; null is train.lr", ABOVE_ZERO)
    lora_plus: float = setting(
        1.0, "LoRA+: how many times down's learning rate up has; 1 is the same, 16 the paper's", AT_LEAST_ONE, "times"
    )
    lr_schedule: str = setting(
        "constant", "how the learning rate goes after the warm-up", one_of("constant", "linear", "cosine")
    )
    warmup_steps: int = setting(0, "steps over which the learning rate rises from nothing", COUNT_OR_NONE, "steps")
    lr_end: float = setting(0.0, "share of the learning rate that linear and cosine come down to", SHARE)
    seed: int = setting(0, "fixes the data order, t, noise, dropout and the LoRA's first values", SEED)
    shuffle: bool = setting(True, "a new order of the pictures each time round; else always by name", SWITCH)
    batch_size: int = setting(
        1,
        "most pictures of one size that go through the model at once, as one micro-batch; pictures wait for others of "
        "their size, at most until the epoch's end",
        COUNT,
        "pictures",
    )
    grad_accum: int = setting(
        1, "micro-batches of one update, whose pictures' gradients are averaged", COUNT, "micro-batches"
    )
    optimizer: str = setting(
        "auto",
        "auto takes paged_adamw8bit on CUDA with bitsandbytes, else adamw; both with betas 0.9, 0.95. prodigy and "
        "schedule_free need the packages prodigyopt and schedulefree",
        one_of("auto", "adamw", "paged_adamw8bit", "adafactor", "prodigy", "schedule_free"),
    )
    weight_decay: float = setting(0.01, "share of each weight taken off, times the learning rate", ZERO_OR_MORE)
    max_grad_norm: float = setting(0.0, "longer gradients are scaled down to this norm; 0 leaves them", ZERO_OR_MORE)
    ema_decay: float = setting(
        0.0, "the results are a running mean of the weights that keeps this share a step; 0 is none", SHARE_BELOW_ONE
    )
    checkpoint_every: int = setting(
        600, "save the run each so many steps; 0 does not", COUNT_OR_NONE, "steps", free=True
    )
    checkpoint_minutes: float = setting(
        15.0,
        "save it, too, when so long has passed since the last time; 0 does not",
        ZERO_OR_MORE,
        "minutes",
        free=True,
    )
    checkpoint_dir: str | None = setting(
        None, "folder of the checkpoints; null is checkpoints/ in the run", SOME_TEXT, free=True
    )
    keep_last: int = setting(3, "newest checkpoints that are kept", COUNT, "checkpoints", free=True)
    keep_every: int = setting(
        0, "checkpoints of every so manieth step are kept for good; 0 keeps none", COUNT_OR_NONE, "steps", free=True
    )
    spike: float = setting(
        5.0,
        "a step is skipped whose loss is this many times the largest of the last 100; 0 skips none but those whose "
        "loss or gradient is no number",
        ZERO_OR_MORE,
        "times",
    )
    max_skips: int = setting(3, "steps skipped in a row before the run goes back to a checkpoint", COUNT_OR_NONE)
    max_rollbacks: int = setting(
        2, "times it goes back, each time with half the learning rate, before it stops", COUNT_OR_NONE
    )
    loss_type: str = setting(
        "x0",
        "error of the predicted picture (x0) or of the velocity (v), squared or Huber",
        one_of("x0", "v", "x0_huber", "v_huber"),
    )
    huber_delta: float = setting(1.0, "error at which a Huber loss turns from squared to linear", ABOVE_ZERO)
    t_dist: str = setting(
        "uniform", "how timesteps are drawn; t = 1 is the clean picture", one_of("uniform", "logit_normal")
    )
    t_logit_mean: float = setting(-0.8, "mean of logit(t), for logit_normal", ANY_NUMBER)
    t_logit_std: float = setting(0.8, "standard deviation of logit(t), for logit_normal", ABOVE_ZERO)
    cond_dropout_text: float = setting(0.0, "share of steps that see the empty prompt in place of the caption", SHARE)
    cond_dropout_both: float = setting(0.0, "the same again, logged apart: text and input picture dropped", SHARE)


@dataclass(frozen=True)
class Runtime(Section):
    """Where the run goes and how it uses the machine; only `upstream_lora_*` changes what is learned."""

    out_dir: str = setting("runs", "folder in which the run gets its own, named run_name", SOME_TEXT, free=True)
    device: str = setting("auto", "device that trains; auto is cuda where there is one, else cpu", DEVICE, free=True)
    cpu_device: str = setting("cpu", "where weights and prefix K/V rest when not in use", one_of("cpu"), free=True)
    keep_kvs_on_gpu: bool = setting(
        True, "keep captions' prefix K/V on the device, as far as there is room; else bring each in", SWITCH, free=True
    )
    prefix_device_mb: int = setting(
        1024, "memory on the device for captions' prefix K/V", COUNT_OR_NONE, "MB", free=True
    )
    prefix_cache_mb: int = setting(
        1024, "host memory for what the device has no room for, page-locked", COUNT_OR_NONE, "MB", free=True
    )
    prefix_dir: str | None = setting(
        None,
        "folder that keeps prefix K/V for this run and later ones; null is this user's cache, or what U1_CACHE names",
        SOME_TEXT,
        free=True,
    )
    prefix_disk_mb: int = setting(
        20_000,
        "size of that folder; what was used longest ago is deleted. 0 keeps none",
        COUNT_OR_NONE,
        "MB",
        free=True,
    )
    budget: str = setting(
        "auto",
        "what may be taken of a card's memory; from it follow which layers stay on the card, how much is kept for "
        "backward and how many micro-batches go together, none of which changes what is learned",
        BUDGET,
        free=True,
    )
    gc_skip_last: int = setting(
        6,
        "last layers whose activations are kept for backward where runtime.budget does not decide it, as on a CPU; the "
        "others' are computed again",
        COUNT_OR_NONE,
        "layers",
        free=True,
    )
    tensorboard: bool = setting(
        False, "write the log's numbers for TensorBoard, too, into tensorboard/ in the run", SWITCH, free=True
    )
    deterministic: bool = setting(
        False, "the same bits each time on the same card, at some cost in speed; a CPU's always are", SWITCH, free=True
    )
    upstream_lora_path: str | None = setting(
        None, "a LoRA that stays in effect, frozen, under the one being trained", SOME_TEXT
    )
    upstream_lora_skip: tuple[str, ...] = setting(
        (), "module paths of the upstream LoRA to leave out, with all below them", ANYTHING
    )


@dataclass(frozen=True)
class Validation(Section):
    """Errors on fixed pictures, timesteps and noise, against the base model's."""

    every: int = setting(
        300, "look each so many steps, and before the first; 0 does not, and holds nothing out", COUNT_OR_NONE, "steps"
    )
    pictures: int = setting(
        4, "most pictures looked at, of those held out and of those trained on each", COUNT, "pictures"
    )
    timesteps: int = setting(8, "values of t that each picture is looked at, from noise to picture", COUNT, free=True)
    split: float | None = setting(
        None,
        "share of the pictures that is held out of training; null holds out as many as validation.pictures where there "
        "are 25 times as many, else none",
        SHARE_BELOW_ONE,
    )


@dataclass(frozen=True)
class Previews(Section):
    """Pictures drawn while training, each beside what the model without the LoRA draws."""

    every: int = setting(600, "draw each so many steps; 0 draws when asked only", COUNT_OR_NONE, "steps", free=True)
    prompts: tuple[str, ...] = setting(
        (), "prompts, trigger included; none takes the first two captions", SOME_TEXT, free=True
    )
    seed: int = setting(42, "seed of every preview", SEED, free=True)
    steps: int = setting(50, "sampling steps; 8 with the 8-step LoRA upstream", COUNT, "steps", free=True)
    cfg: float = setting(4.0, "guidance scale; 1 with the 8-step LoRA upstream", AT_LEAST_ONE, free=True)
    size: str | None = setting(
        None, "WIDTHxHEIGHT or a ratio such as 3:2@1MP; null is 1:1 at the pixels of the training", SOME_TEXT, free=True
    )


@dataclass(frozen=True)
class Recipe(Section):
    """One training run, whole."""

    run_name: str = setting("my_run", "name of the run, of its folder and of its LoRA", FOLDER_NAME)
    model: str | None = setting(None, "model folder, .safetensors file or hub id; `--model` wins", SOME_TEXT, free=True)
    data: Data = field(default_factory=Data)
    style: Style = field(default_factory=Style)
    lora: Lora = field(default_factory=Lora)
    unfreeze: tuple[str, ...] = setting(
        DEFAULT_UNFROZEN, "tensors trained in full, by patterns of their names", PATTERN
    )
    train: Train = field(default_factory=Train)
    runtime: Runtime = field(default_factory=Runtime)
    validation: Validation = field(default_factory=Validation)
    previews: Previews = field(default_factory=Previews)

    def __post_init__(self) -> None:
        super().__post_init__()
        dropped = self.train.cond_dropout_text + self.train.cond_dropout_both
        if dropped > 1:
            words = f"and train.cond_dropout_text are {dropped:g} together; allowed: 1 at most"
            raise RecipeError("train.cond_dropout_both", words)
        if self.train.optimizer == "prodigy" and self.train.lr < 0.01:
            words = (
                f"is {self.train.lr:g}, but prodigy finds its own learning rate and multiplies it by this: set it to 1"
            )
            raise RecipeError("train.lr", words)
        if self.train.optimizer == "prodigy" and (self.train.lr_full or self.train.lora_plus != 1):
            key = "train.lr_full" if self.train.lr_full else "train.lora_plus"
            raise RecipeError(key, "cannot be with prodigy, which has one learning rate for all; take it out")
        if self.train.optimizer == "schedule_free" and self.train.lr_schedule != "constant":
            words = f"is {self.train.lr_schedule}, but schedule_free takes the place of a schedule; allowed: constant"
            raise RecipeError("train.lr_schedule", words)
        if not (self.lora.spec or self.lora.preset or self.unfreeze):
            raise RecipeError("unfreeze", "is empty, and so are lora.preset and lora.spec: nothing would be trained")


@dataclass(frozen=True)
class FieldDoc:
    """One field as documentation: its dotted key and what `setting` was told."""

    key: str
    default: Any
    meaning: str
    unit: str
    allowed: str


def field_docs() -> Iterator[FieldDoc]:
    """Every field of a recipe, in the file's order."""
    for outer in dataclasses.fields(Recipe):
        kind = Recipe if outer.metadata else outer.default_factory
        for one in [outer] if outer.metadata else dataclasses.fields(kind):
            about = one.metadata
            key = section_prefix(kind) + one.name
            yield FieldDoc(key, one.default, about["meaning"], about["unit"], about["rule"].words)
