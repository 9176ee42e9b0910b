"""A run's settings: every field with its meaning, unit, default and what it may be, said once, here.

Sections and names are the reference trainer's, so that its config files load unchanged; defaults are its recommended
recipe. `recipe_file` reads and writes them as YAML.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from u1_core.errors import U1Error, nearest
from u1_core.lora.plan import DEFAULT_UNFROZEN
from u1_core.lora.spec import PRESETS, parse_spec


class RecipeError(U1Error):
    """A setting that cannot be. `key` is its dotted name, for a reader who knows the line it stands on."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(f"{key} {words}")
        self.key = key


@dataclass(frozen=True)
class Rule:
    """What a value may be (of a list, each item): in words, as a test, and by name where only a few names will do.

    The test may raise a U1Error that knows better what is wrong.
    """

    words: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


def one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in names, names)


def _is_pattern(pattern: str) -> bool:
    try:
        return re.compile(pattern) is not None
    except re.error:
        return False


_FORBIDDEN_IN_NAMES = re.compile(
    r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]$|^\s*$|^(con|nul|aux|prn|com\d|lpt\d)$', re.IGNORECASE
)

ANYTHING = Rule("any text", lambda value: True)
SWITCH = Rule("true or false", lambda value: True)
SOME_TEXT = Rule("a text that is not empty", lambda value: bool(value.strip()))
FOLDER_NAME = Rule(
    "a plain folder name, without / \\ : * ? and the like", lambda value: not _FORBIDDEN_IN_NAMES.search(value)
)
COUNT = Rule("a whole number, 1 or more", lambda value: value >= 1)
COUNT_OR_NONE = Rule("a whole number, 0 or more", lambda value: value >= 0)
SEED = Rule("a whole number from 0 to 2^63 - 1", lambda value: 0 <= value < 2**63)
PIXELS = Rule("a whole number, 1024 (32 x 32) or more", lambda value: value >= 1024)
ANY_NUMBER = Rule("a number", lambda value: True)
AT_LEAST_ONE = Rule("a number, 1 or more", lambda value: value >= 1)
ABOVE_ZERO = Rule("a number above 0", lambda value: value > 0)
SHARE = Rule("a number from 0 to 1", lambda value: 0 <= value <= 1)
SHARE_BELOW_ONE = Rule("a number from 0 to below 1", lambda value: 0 <= value < 1)
LORA_SPEC = Rule("a LoRA spec", lambda value: bool(parse_spec(value)))
PATTERN = Rule("a regular expression", _is_pattern)
DEVICE = Rule("auto, cpu, cuda or cuda:N", lambda value: bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", value)))


def setting(default: Any, meaning: str, rule: Rule, unit: str = "") -> Any:
    """A field of a recipe with its documentation and its rule."""
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "rule": rule})


class Section:
    """Settings that check themselves when made: RecipeError names the first that breaks its rule."""

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if value is None or not one.metadata:
                continue
            key = section_prefix(type(self)) + one.name
            items = {f"{key}[{i}]": item for i, item in enumerate(value)} if isinstance(value, tuple) else {key: value}
            for name, item in items.items():
                rule = one.metadata["rule"]
                try:
                    holds = rule.holds(item)
                except U1Error as problem:
                    raise RecipeError(name, f"will not do: {problem}") from None
                if not holds:
                    shown = repr(item) if isinstance(item, str) else f"{item}"
                    raise RecipeError(name, f"is {shown}; allowed: {rule.words}{nearest(item, rule.names)}")


def section_prefix(kind: type) -> str:
    """What stands before a field's name in its dotted key: "train." for `Train`, nothing for `Recipe`."""
    return "" if kind is Recipe else f"{kind.__name__.lower()}."


@dataclass(frozen=True)
class Data(Section):
    """The pictures and captions."""

    data_dir: str = setting(
        "dataset/my_style", "folder of pictures with same-name .txt captions, or a .parquet or .arrow file", SOME_TEXT
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
    cache_mb: int = setting(1024, "memory for decoded pictures; more are decoded again", COUNT_OR_NONE, "MB")
    workers: int = setting(2, "threads that decode ahead; 0 decodes when its turn has come", COUNT_OR_NONE, "threads")


@dataclass(frozen=True)
class Style(Section):
    """How a caption becomes a prompt."""

    trigger: str = setting("", 'words put before every caption, as "{trigger}, {caption}"', ANYTHING)
    prompt_template: str = setting(
        "official", "the prompt that sampling uses, or the bare caption", one_of("official", "plain")
    )


@dataclass(frozen=True)
class Lora(Section):
    """Which modules get low-rank terms."""

    preset: str | None = setting(
        "attn_mlp_no_head", "a named choice of modules and ranks; null is none", one_of(*PRESETS)
    )
    spec: str | None = setting(None, 'modules and ranks in the spec language, "attn=r64a64;mlp=r32"; wins', LORA_SPEC)
    dropout: float = setting(0.0, "share of each term's inputs zeroed while training", SHARE_BELOW_ONE)


@dataclass(frozen=True)
class Train(Section):
    """Objective and optimisation."""

    steps: int = setting(6000, "updates of the weights", COUNT, "steps")
    lr: float = setting(5e-5, "learning rate, constant", ABOVE_ZERO)
    seed: int = setting(0, "fixes the data order, t, noise, dropout and the LoRA's first values", SEED)
    shuffle: bool = setting(True, "a new order of the pictures each time round; else always by name", SWITCH)
    grad_accum: int = setting(1, "pictures whose gradients are averaged into one update", COUNT, "pictures")
    optimizer: str = setting(
        "auto",
        "auto takes paged_adamw8bit on CUDA with bitsandbytes, else adamw; betas 0.9, 0.95, weight decay 0.01",
        one_of("auto", "adamw", "paged_adamw8bit"),
    )
    checkpoint_every: int = setting(600, "save the weights each so many steps; 0 saves at the end only", COUNT_OR_NONE)
    checkpoint_dir: str | None = setting(None, "folder of the checkpoints; null is checkpoints/ in the run", SOME_TEXT)
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

    out_dir: str = setting("runs", "folder in which the run gets its own, named run_name", SOME_TEXT)
    device: str = setting("auto", "device that trains; auto is cuda where there is one, else cpu", DEVICE)
    cpu_device: str = setting("cpu", "where weights and prefix K/V rest when not in use", one_of("cpu"))
    keep_kvs_on_gpu: bool = setting(True, "keep every caption's prefix K/V on the device; else bring each in", SWITCH)
    prefix_cache_mb: int = setting(
        8192, "memory for captions' prefix K/V, where they rest; more are built again", COUNT_OR_NONE, "MB"
    )
    prefix_dir: str | None = setting(
        None, "folder that keeps prefix K/V for this run and later ones; null builds them anew", SOME_TEXT
    )
    gc_skip_last: int = setting(
        6,
        "last layers whose activations are kept for backward; the others' are computed again",
        COUNT_OR_NONE,
        "layers",
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

    every: int = setting(300, "look each so many steps, and before the first; 0 does not", COUNT_OR_NONE, "steps")
    pictures: int = setting(
        4, "most pictures looked at, of those held out and of those trained on each", COUNT, "pictures"
    )
    timesteps: int = setting(8, "values of t that each picture is looked at, from noise to picture", COUNT)
    split: float | None = setting(
        None,
        "share of the pictures that is held out of training; null holds out as many as validation.pictures where there "
        "are 25 times as many, else none",
        SHARE_BELOW_ONE,
    )


@dataclass(frozen=True)
class Previews(Section):
    """Pictures drawn while training, each beside what the model without the LoRA draws."""

    every: int = setting(600, "draw each so many steps; 0 draws when asked only", COUNT_OR_NONE, "steps")
    prompts: tuple[str, ...] = setting((), "prompts, trigger included; none takes the first two captions", SOME_TEXT)
    seed: int = setting(42, "seed of every preview", SEED)
    steps: int = setting(50, "sampling steps; 8 with the 8-step LoRA upstream", COUNT, "steps")
    cfg: float = setting(4.0, "guidance scale; 1 with the 8-step LoRA upstream", AT_LEAST_ONE)
    size: str | None = setting(
        None, "WIDTHxHEIGHT or a ratio such as 3:2@1MP; null is 1:1 at the pixels of the training", SOME_TEXT
    )


@dataclass(frozen=True)
class Recipe(Section):
    """One training run, whole."""

    run_name: str = setting("my_run", "name of the run, of its folder and of its LoRA", FOLDER_NAME)
    model: str | None = setting(None, "model folder, .safetensors file or hub id; `--model` wins", SOME_TEXT)
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
