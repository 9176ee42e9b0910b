"""The recipes that come along, to start from: `u1 recipe new --from NAME OUT`."""

from dataclasses import dataclass

from u1_core.train.recipe import Data, Lora, Previews, Recipe, Runtime, Style, Train, Validation

MEGAPIXEL = 1024 * 1024
UPSTREAM_8STEP = "SenseNova-U1-8B-MoT-LoRA-8step-V1.0.safetensors"
"""The official 8-step LoRA of U1, by the name it is published under."""


@dataclass(frozen=True)
class Shipped:
    """A recipe and what it is for."""

    words: str
    recipe: Recipe


SHIPPED: dict[str, Shipped] = {
    "style_default": Shipped(
        "a style from some dozens of pictures at full size; the reference trainer's recommended recipe",
        Recipe(run_name="my_style", style=Style(trigger="my style")),
    ),
    "official_alignment": Shipped(
        "the settings that the model's own authors published, for research rather than for small sets",
        Recipe(
            run_name="official_alignment",
            data=Data(use_think_labels=True),
            lora=Lora(preset="default"),
            train=Train(loss_type="v", t_dist="logit_normal", cond_dropout_text=0.1, cond_dropout_both=0.1),
            runtime=Runtime(keep_kvs_on_gpu=False, gc_skip_last=0),
        ),
    ),
    "stack_8step": Shipped(
        "a style to be used together with the official 8-step LoRA, which stays in effect while it is trained",
        Recipe(
            run_name="my_style_8step",
            style=Style(trigger="my style"),
            runtime=Runtime(upstream_lora_path=UPSTREAM_8STEP, upstream_lora_skip=("fm_modules.fm_head",)),
            previews=Previews(steps=8, cfg=1.0),
        ),
    ),
    "quick_preview": Shipped(
        "a first impression at 1 MP, about an hour on a 16 GB card: the LoRA alone, at a higher learning rate",
        Recipe(
            run_name="quick_preview",
            data=Data(cap_max_pixels=MEGAPIXEL),
            style=Style(trigger="my style"),
            unfreeze=(),
            train=Train(steps=1500, lr=1e-4, checkpoint_every=300),
            runtime=Runtime(gc_skip_last=0),
            validation=Validation(every=250),
            previews=Previews(every=500, steps=30),
        ),
    ),
    "character": Shipped(
        "one person or thing from ten to forty pictures; caption what varies, the trigger stands for what does not",
        Recipe(
            run_name="my_character",
            style=Style(trigger="mychar person"),
            lora=Lora(spec="attn=r32a32;mlp=r32a32"),
            unfreeze=(),
            train=Train(steps=3000, lr=1e-4, checkpoint_every=300, cond_dropout_text=0.05),
            previews=Previews(every=300),
        ),
    ),
}
