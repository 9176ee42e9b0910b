import dataclasses
import textwrap

import pytest

from u1_core.errors import U1Error
from u1_core.train.recipe import Data, Lora, Recipe, Runtime, Style, Train
from u1_core.train.recipe_file import dump_recipe, load_recipe, parse_recipe

REFERENCE_README = r"""
run_name: my_run

data:
  data_dir: dataset/my_style
  cap_max_pixels: 4194304          # 2048² hard cap per image
  snap_bucket: true                 # snap to upstream bucket grid
  use_think_labels: false           # keep prefixes short by default
  # n_samples: 56                   # cap dataset size; default = use everything

style:
  trigger: "my style"              # prepended to every caption
  prompt_template: official        # 'official' (recommended) | 'plain'

lora:
  preset: attn_mlp_no_head         # attn+mlp LoRA; fm_head is full-FT below
  # spec: "attn=r64a64;mlp=r64a64;mlp_mot_gen.down_proj=off"
  dropout: 0.0

unfreeze:                          # full-FT (non-LoRA) regex patterns
  - '^fm_modules\.timestep_embedder\.'
  - '^fm_modules\.noise_scale_embedder\.'
  - '^fm_modules\.vision_model_mot_gen\.'
  - '^fm_modules\.fm_head\.'

train:
  steps: 6000
  lr: 5.0e-5
  seed: 0
  shuffle: true
  grad_accum: 1
  checkpoint_every: 600
  loss_type: x0
  t_dist: uniform
  t_logit_mean: -0.8
  t_logit_std: 0.8
  # huber_delta: 1.0             # only used for *_huber
  cond_dropout_text: 0.0
  cond_dropout_both: 0.0

runtime:
  keep_kvs_on_gpu: true
  gc_skip_last: 6
  device: cuda
  cpu_device: cpu
"""
"""The configuration that the reference trainer's page shows, as it stands there."""

OFFICIAL_ALIGNMENT = REFERENCE_README.replace("loss_type: x0", "loss_type: v").replace("uniform", "logit_normal")
OFFICIAL_ALIGNMENT = OFFICIAL_ALIGNMENT.replace("_text: 0.0", "_text: 0.10").replace("_both: 0.0", "_both: 0.10")
OFFICIAL_ALIGNMENT = OFFICIAL_ALIGNMENT.replace("preset: attn_mlp_no_head", "preset: default")

STACKED = r"""
run_name: stacked
runtime:
  upstream_lora_path: hf_cache/SenseNova-U1-8B-MoT-LoRA-8step-V1.0.safetensors
  upstream_lora_skip: ['fm_modules.fm_head']   # don't clobber our fm_head LoRA
"""


def test_the_reference_trainers_recipe_loads_unchanged():
    recipe = parse_recipe(REFERENCE_README, "default.yaml")
    assert recipe == Recipe(style=Style(trigger="my style"), runtime=Runtime(device="cuda"))


def test_its_official_alignment_recipe_loads_unchanged():
    recipe = parse_recipe(OFFICIAL_ALIGNMENT, "official_alignment.yaml")
    assert (recipe.train.loss_type, recipe.train.t_dist, recipe.lora.preset) == ("v", "logit_normal", "default")
    assert (recipe.train.cond_dropout_text, recipe.train.cond_dropout_both) == (0.1, 0.1)


def test_its_stacked_recipe_loads_unchanged():
    runtime = parse_recipe(STACKED, "stacked.yaml").runtime
    assert runtime.upstream_lora_path == "hf_cache/SenseNova-U1-8B-MoT-LoRA-8step-V1.0.safetensors"
    assert runtime.upstream_lora_skip == ("fm_modules.fm_head",)


def test_written_out_it_reads_back_the_same():
    recipe = Recipe(
        run_name="été",
        model="models/U1",
        data=Data(n_samples=3, snap_bucket=False),
        style=Style(trigger="yes: a 'style' # not a comment"),
        lora=Lora(preset=None, spec="attn=r8a4;mlp=off;fm_head=r4", dropout=0.1),
        unfreeze=(),
        train=Train(lr=1e-7, seed=2**63 - 1, shuffle=False, t_logit_mean=-1.5),
        runtime=Runtime(upstream_lora_skip=("fm_modules.fm_head", "x")),
    )
    text = dump_recipe(recipe)
    assert parse_recipe(text, "x") == recipe
    assert dump_recipe(parse_recipe(text, "x")) == text


def test_nothing_is_left_out_and_an_empty_section_is_its_defaults():
    assert parse_recipe("", "x") == parse_recipe("data:\ntrain: ~\n", "x") == Recipe()
    text = dump_recipe(Recipe())
    assert all(f"{one.name}:" in text for section in (Recipe, Data, Train) for one in dataclasses.fields(section))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("5e-5", "lr", 5e-5),
        ("5.0e-5", "lr", 5e-5),
        ("1", "lr", 1.0),
        ("010", "steps", 10),
        ("6e3", "steps", 6000),
        ("1_000", "steps", 1000),
        ("off", "shuffle", False),
        ("True", "shuffle", True),
        ("null", "checkpoint_dir", None),
    ],
)
def test_values_mean_what_they_look_like(text, key, value):
    found = getattr(parse_recipe(f"train: {{{key}: {text}}}", "x").train, key)
    assert found == value
    assert type(found) is type(value)


def test_texts_that_look_like_something_else_stay_texts():
    recipe = parse_recipe("run_name: 007\nstyle: {trigger: yes}", "x")
    assert (recipe.run_name, recipe.style.trigger) == ("007", "yes")


def test_files_that_are_none(tmp_path):
    with pytest.raises(U1Error, match="there is no such recipe"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(U1Error, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "r.yaml").write_bytes("trigger: ä".encode("latin-1"))
    with pytest.raises(U1Error, match="byte 9 is not UTF-8"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + textwrap.dedent("run_name: bom").encode())
    assert load_recipe(tmp_path / "r.yaml").run_name == "bom"


def test_prodigy_and_schedule_free_ask_for_what_they_need():
    for settings, words in (
        ("optimizer: prodigy", "train.lr is 5e-05, but prodigy finds its own"),
        ("{optimizer: prodigy, lr: 1, lora_plus: 16}", "train.lora_plus cannot be with prodigy"),
        ("{optimizer: schedule_free, lr_schedule: cosine}", "train.lr_schedule is cosine, but schedule_free takes"),
    ):
        with pytest.raises(U1Error, match=words):
            parse_recipe(f"train:\n  {settings}" if settings[0] != "{" else f"train: {settings}", "r.yaml")
    assert Recipe().train.optimizer == "auto"
