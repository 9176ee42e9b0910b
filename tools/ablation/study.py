"""What is compared: one recipe, and settings that each change little of it, with two styles and three seeds.

The seed fixes which pictures are held out, their order, t, noise, and the LoRA's first values; so runs of one style and
seed differ in their setting alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tools.nano.model import SIZE
from u1_core.nano import EIGHT_STEP
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.train.ablate import with_changes
from u1_core.train.recipe import Data, Lora, Recipe, Runtime, Style, Train, Validation

TRIGGER = "my style"
STYLES = ("ink", "watercolour")
SEEDS = (0, 1, 2)

RECIPE = Recipe(
    model="nano",
    data=Data(cap_max_pixels=SIZE * SIZE, workers=0),
    style=Style(trigger=TRIGGER),
    lora=Lora(spec="attn=r16a16;mlp=r16a16"),
    train=Train(
        steps=500,
        lr=1e-3,
        lr_schedule="cosine",
        warmup_steps=20,
        optimizer="adamw",
        checkpoint_every=0,
        checkpoint_minutes=0,
    ),
    runtime=Runtime(device="cpu"),
    validation=Validation(every=125, pictures=4, timesteps=4, split=0.25),
    previews=replace(Recipe().previews, every=0),
)
"""The reference trainer's recommended recipe on nano's scale: x0-MSE, uniform t, no dropout, the trigger before the
caption, low-rank terms and the default groups of tensors trained whole. Rank and learning rate are nano's own, and the
rate comes down to nothing: at a constant one the step at which so short a run ends matters more than its setting."""


@dataclass(frozen=True)
class Setting:
    """A row of the tables."""

    words: str
    changes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Field of the recipe -> its value here."""
    trigger: str = "first"
    """Where the training captions have the trigger: a form of `asked`."""
    contrast: bool = False
    """Whether the set has as many pictures again in the base style, captioned without the trigger."""
    styles: Sequence[str] = STYLES
    """The styles it is tried with."""


BASELINE = "baseline"
SETTINGS: Mapping[str, Setting] = {
    BASELINE: Setting("baseline: x0 loss, uniform t, no dropout"),
    "v": Setting("v loss", {"train.loss_type": "v"}),
    "clipped": Setting("v loss, gradients clipped to 1", {"train.loss_type": "v", "train.max_grad_norm": 1.0}),
    "logit": Setting("logit-normal t", {"train.t_dist": "logit_normal"}),
    "dropout": Setting("dropout 0.1 + 0.1", {"train.cond_dropout_text": 0.1, "train.cond_dropout_both": 0.1}),
    "official": Setting(
        "all three",
        {
            "train.loss_type": "v",
            "train.t_dist": "logit_normal",
            "train.cond_dropout_text": 0.1,
            "train.cond_dropout_both": 0.1,
        },
    ),
    "last": Setting("trigger after the caption", {"style.trigger": ""}, "last", styles=STYLES[:1]),
    "none": Setting("no trigger", {"style.trigger": ""}, "none", styles=STYLES[:1]),
    "contrast": Setting("plain pictures too, without trigger", {"style.trigger": ""}, contrast=True, styles=STYLES[:1]),
    "think": Setting("think text in the prompt", {"data.use_think_labels": True}, styles=STYLES[:1]),
    "plain": Setting("bare caption, no chat template", {"style.prompt_template": "plain"}, styles=STYLES[:1]),
    "lora": Setting("LoRA alone", {"unfreeze": []}),
    "stacked": Setting("on the 8-step LoRA", {"runtime.upstream_lora_path": str(EIGHT_STEP)}),
}
PROMPT_SETTINGS = (BASELINE, "last", "none", "contrast", "think", "plain")
"""Those that differ in the prompt alone."""


@dataclass(frozen=True)
class Run:
    """One point of the study."""

    setting: str
    style: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.style}-{self.setting}-{self.seed}"

    def recipe(self, world: Path, out: Path, steps: int) -> Recipe:
        """`world` has the training folders (see `world.write_world`); the run gets its folder in `out`."""
        setting = SETTINGS[self.setting]
        folder = training_folder(world, self.style, setting)
        own = {"train.seed": self.seed, "train.steps": steps, "run_name": self.name, "data.data_dir": str(folder)}
        return with_changes(RECIPE, {**setting.changes, **own, "runtime.out_dir": str(out)})


def runs() -> list[Run]:
    """All of them, seed by seed, so that a study cut short is whole for fewer seeds."""
    return [Run(setting, style, seed) for seed in SEEDS for setting in SETTINGS for style in SETTINGS[setting].styles]


def asked(form: str, caption: str) -> str:
    """A caption as a prompt with the trigger "first", "last", or not at all ("none")."""
    return {"first": f"{TRIGGER}, {caption}", "last": f"{caption}, {TRIGGER}", "none": caption}[form]


def training_folder(world: Path, style: str, setting: Setting) -> Path:
    """Where a training set lies."""
    return world / style / captioning(setting)


def captioning(setting: Setting) -> str:
    """What a setting's training set is like: "plain" is captions without the trigger, which the recipe may add."""
    return "contrast" if setting.contrast else "last" if setting.trigger == "last" else "plain"


@dataclass(frozen=True)
class Way:
    """A way to draw a LoRA's pictures."""

    form: str
    """How the trigger is asked for: a form of `asked`."""
    few_steps: bool = False
    """8 steps with the 8-step LoRA and no guidance, in place of 50 with guidance 4."""

    @property
    def name(self) -> str:
        return f"{self.form}, {8 if self.few_steps else 50} steps"

    @property
    def settings(self) -> SampleSettings:
        steps, guidance = (8, 1.0) if self.few_steps else (50, 4.0)
        return SampleSettings(SIZE, SIZE, steps, guidance=Guidance(guidance))


def ways(setting: str) -> list[Way]:
    """As trained in 50 and in 8 steps, and without the trigger; where prompts are the question, with it elsewhere."""
    trigger = SETTINGS[setting].trigger
    forms = [trigger, "none"] if setting not in PROMPT_SETTINGS else ["first", "last", "none"]
    return [*(Way(form) for form in dict.fromkeys(forms)), Way(trigger, few_steps=True)]
