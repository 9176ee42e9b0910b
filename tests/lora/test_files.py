import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import FULL_FILE, parse_lora_argument, read_lora, write_full, write_lora
from u1_core.model.config import tensor_shapes
from u1_core.weights.snapshot import Snapshot

HEAD = "fm_modules.fm_head.0"
LAYER = "language_model.model.layers.0"
Q0 = f"{LAYER}.self_attn.q_proj_mot_gen"


def _tensors(
    adapter, prefix="", sides=("lora_down.weight", "lora_up.weight"), alpha=torch.float32, dtype=torch.float32
):
    """The adapter as another program might save it; `alpha` is its dtype, or None to leave it out."""
    tensors = {}
    for path, module in adapter.modules.items():
        path = path.replace(".", "_") if prefix == "lora_unet_" else path
        for side, tensor in zip(sides, (module.down, module.up), strict=True):
            tensors[f"{prefix}{path}.{side}"] = tensor.to(dtype)
        if alpha:
            tensors[f"{prefix}{path}.alpha"] = torch.tensor(module.alpha).to(alpha)
    return tensors


def _saved(tmp_path, tensors, metadata=None, name="x.safetensors"):
    path = tmp_path / name
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def _same_effect(read, adapter, tolerance=0.0):
    assert set(read.modules) == set(adapter.modules)
    for path, module in adapter.modules.items():
        torch.testing.assert_close(read.modules[path].delta(), module.delta(), rtol=tolerance, atol=tolerance)


PEFT, LEGACY = ("lora_A.weight", "lora_B.weight"), ("lora_A", "lora_B")
DIFFUSERS = ("lora.down.weight", "lora.up.weight")
PEFT_DEFAULT = ("lora_A.default.weight", "lora_B.default.weight")


@pytest.mark.parametrize(
    ("form", "prefix", "naming"),
    [
        ({}, "", "lora_down/lora_up"),
        ({"alpha": torch.int32}, "", "lora_down/lora_up"),
        ({"alpha": torch.bfloat16, "prefix": "diffusion_model."}, "diffusion_model.", "lora_down/lora_up"),
        ({"prefix": "lora_unet_"}, "lora_unet_", "lora_down/lora_up"),
        ({"sides": PEFT}, "", "lora_A/lora_B"),
        ({"sides": LEGACY}, "", "lora_A/lora_B"),
        ({"sides": PEFT, "prefix": "diffusion_model."}, "diffusion_model.", "lora_A/lora_B"),
        ({"sides": PEFT, "prefix": "base_model.model."}, "base_model.model.", "lora_A/lora_B"),
        ({"sides": DIFFUSERS, "prefix": "transformer."}, "transformer.", "lora.down/lora.up"),
        ({"sides": PEFT_DEFAULT, "prefix": "base_model.model."}, "base_model.model.", "lora_A/lora_B"),
    ],
)
def test_every_form_has_the_same_effect(tmp_path, filled, form, prefix, naming):
    adapter = filled("u1", "attn=r4a2;mlp=r2a8;fm_head=r3a1")
    file = read_lora(_saved(tmp_path, _tensors(adapter, **form)))
    _same_effect(file.adapter, adapter)
    assert (file.prefix, file.naming, file.has_alpha, file.notes) == (prefix, naming, True, ())
    assert file.dtypes == ("F32",)


def test_half_precision_stays_as_it_is_stored(tmp_path, filled):
    adapter = filled("u1", "attn=r4a2")
    file = read_lora(_saved(tmp_path, _tensors(adapter, dtype=torch.bfloat16, alpha=torch.bfloat16)))
    assert file.dtypes == ("BF16",)
    assert file.adapter.modules[Q0].down.dtype == torch.bfloat16
    _same_effect(file.adapter, adapter, tolerance=0.1)


def test_without_an_alpha_the_rank_stands_in_and_a_note_says_so(tmp_path, filled):
    file = read_lora(_saved(tmp_path, _tensors(filled("u1", "attn=r4a2"), alpha=None)))
    assert {module.scale for module in file.adapter.modules.values()} == {1.0}
    assert file.notes == ("8 modules have no alpha: it is taken to be the rank (scale 1)",)
    assert not file.has_alpha


def test_alpha_from_peft_settings(tmp_path, filled):
    path = _saved(tmp_path, _tensors(filled("u1", "attn=r4"), "base_model.model.", PEFT, alpha=None))
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"layers.1.self_attn.q_proj_mot_gen": 2, "o_proj_mot_gen": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    file = read_lora(path)
    scales = {module.removeprefix("language_model.model."): m.scale for module, m in file.adapter.modules.items()}
    assert scales["layers.0.self_attn.q_proj_mot_gen"] == 2.0
    assert scales["layers.1.self_attn.q_proj_mot_gen"] == 0.5
    assert scales["layers.1.self_attn.o_proj_mot_gen"] == 0.25
    assert file.notes == ("alpha is taken from adapter_config.json",)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "use_rslora": True}), encoding="utf-8")
    assert read_lora(path).adapter.modules[Q0].scale == 6 / math.sqrt(4)


def test_peft_settings_are_of_pefts_files_only(tmp_path, filled):
    adapter = filled("u1", "attn=r4")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}', encoding="utf-8")

    def scale(name, prefix):
        path = _saved(tmp_path, _tensors(adapter, prefix, PEFT, alpha=None), name=name)
        return read_lora(path).adapter.modules[Q0].scale

    assert scale("style.safetensors", "base_model.model.") == 2.0
    assert scale("adapter_model.safetensors", "") == 2.0
    assert scale("style.safetensors", "") == 1.0
    assert scale("style.safetensors", "diffusion_model.") == 1.0
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA", "alpha": 8}', encoding="utf-8")
    assert scale("style.safetensors", "diffusion_model.") == 1.0
    with pytest.raises(U1Error, match=r"adapter_config.json: has no lora_alpha"):
        scale("adapter_model.safetensors", "")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": "no"}, "lora_alpha is 'no', expected a number above 0"),
        ({"lora_alpha": 10**400}, "lora_alpha is 10+, expected a number above 0"),
        (
            {"alpha_pattern": {"*.q_proj": 3}},
            r"alpha_pattern '\*\.q_proj' is not a regular expression \(nothing to repeat\)",
        ),
        ({"alpha_pattern": {"q_proj": -1}}, "lora_alpha is -1, expected"),
        ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern is \['q_proj'\], expected alphas by pattern"),
        ({"use_rslora": "perhaps"}, "use_rslora is 'perhaps', expected true or false"),
    ],
)
def test_peft_settings_that_make_no_sense_are_named(tmp_path, filled, config, message):
    path = _saved(tmp_path, _tensors(filled("u1", "attn=r4"), "base_model.model.", PEFT, alpha=None))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8} | config), encoding="utf-8")
    with pytest.raises(U1Error, match=rf"adapter_config\.json: {message}"):
        read_lora(path)


def test_alpha_from_metadata(tmp_path, filled):
    tensors = _tensors(filled("u1", "attn=r4"), sides=PEFT, alpha=None)

    def scale(**metadata):
        return read_lora(_saved(tmp_path, tensors, metadata)).adapter.modules[Q0].scale

    assert scale(lora_alpha="1") == scale(lora_alpha="1", use_rslora="False", alpha_pattern="{}") == 0.25
    assert scale(lora_alpha="8", use_rslora="true") == scale(lora_alpha="8.0", use_rslora="True") == 4.0
    assert scale(lora_alpha="8", alpha_pattern='{"q_proj_mot_gen": 2}') == 0.5
    with pytest.raises(U1Error, match=r"x\.safetensors: use_rslora is 'perhaps'"):
        scale(lora_alpha="8", use_rslora="perhaps")


def test_full_tensors_beside_low_rank_terms(tmp_path, filled, configs):
    bias = torch.randn(tensor_shapes(configs["u1"])[f"{HEAD}.bias"])
    file = read_lora(_saved(tmp_path, _tensors(filled("u1")) | {f"{HEAD}.bias": bias}))
    assert set(file.adapter.full) == {f"{HEAD}.bias"}
    assert torch.equal(file.adapter.full[f"{HEAD}.bias"], bias)
    assert file.adapter.kinds == {"u1"}


def test_what_is_written_is_fp32_with_prefix_and_alpha(tmp_path, filled):
    adapter = filled("u1", "attn=r4a2;mlp=r2").to("cpu", torch.bfloat16)
    path = tmp_path / "style.safetensors"
    write_lora(path, adapter, {"steps": "600", "u1.base_kind": "a3b"})
    tensors = load_file(path)
    assert len(tensors) == 3 * 14
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(key.startswith("diffusion_model.language_model.model.layers.") for key in tensors)
    assert tensors[f"diffusion_model.{Q0}.alpha"].item() == 2.0
    file = read_lora(path)
    _same_effect(file.adapter, adapter)
    assert (file.adapter.kinds, file.adapter.kind_reason) == ({"u1"}, "its metadata says U1")
    assert file.metadata["u1.base_kind"] == "u1"
    assert {key: file.metadata[key] for key in ("steps", "rank", "alpha", "modules")} == {
        "steps": "600",
        "rank": "2, 4",
        "alpha": "2",
        "modules": "14",
    }
    with pytest.raises(U1Error, match="already there"):
        write_lora(path, adapter)
    write_lora(path, adapter, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["style.safetensors"]


def test_the_file_of_full_tensors_comes_along(tmp_path, filled):
    adapter = filled("u1", "attn=r2")
    head = {f"{HEAD}.bias": torch.randn(4096).bfloat16()}
    write_full(tmp_path / "style.full.safetensors", head, "u1")
    write_lora(tmp_path / "style.safetensors", adapter, {FULL_FILE: "style.full.safetensors"})
    file = read_lora(tmp_path / "style.safetensors")
    assert torch.equal(file.adapter.full[f"{HEAD}.bias"], head[f"{HEAD}.bias"])
    assert file.notes == ("its 1 tensors trained whole are in style.full.safetensors",)
    assert file.full_file == tmp_path / "style.full.safetensors"
    alone = read_lora(tmp_path / "style.full.safetensors").adapter
    assert (list(alone.modules), list(alone.full)) == ([], [f"{HEAD}.bias"])
    (tmp_path / "style.full.safetensors").unlink()
    assert "style.full.safetensors is not beside it" in read_lora(tmp_path / "style.safetensors").notes[0]


def test_what_was_read_stays_when_the_files_are_written_anew(tmp_path, filled):
    low_rank = _saved(tmp_path, _tensors(filled("u1")), {FULL_FILE: "full.safetensors"})
    full = _saved(tmp_path, {f"{HEAD}.bias": torch.ones(64)}, name="full.safetensors")
    adapter = read_lora(low_rank).adapter
    for path in (low_rank, full):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    _same_effect(adapter, filled("u1"))
    assert torch.equal(adapter.full[f"{HEAD}.bias"], torch.ones(64))


def _official_merge(weights, lora):
    """The official loader's rule, strictly: returns (merged weights, the keys it used)."""
    merged, used = dict(weights), set()
    prefix = "diffusion_model." if any("diffusion_model." in key for key in lora) else ""
    for name, weight in weights.items():
        down, up, alpha = (
            prefix + name.replace(".weight", f".{part}") for part in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        if down not in lora:
            continue
        assert lora[down].dtype == lora[up].dtype == torch.float32
        merged[name] = weight + float(lora[alpha]) / lora[down].shape[0] * (lora[up] @ lora[down])
        used |= {down, up, alpha}
    return merged, used


def _comfyui_merge(weights, lora):
    """Stock ComfyUI's LoraLoader: model keys are diffusion_model.<name>, without an alpha the scale is 1."""
    merged, used = dict(weights), set()
    for name, weight in weights.items():
        key = f"diffusion_model.{name}".removesuffix(".weight")
        if not name.endswith(".weight") or f"{key}.lora_up.weight" not in lora:
            continue
        down, up = lora[f"{key}.lora_down.weight"], lora[f"{key}.lora_up.weight"]
        scale = lora[f"{key}.alpha"].item() / down.shape[0] if f"{key}.alpha" in lora else 1.0
        merged[name] = weight + scale * (up.float() @ down.float())
        used |= {f"{key}.lora_down.weight", f"{key}.lora_up.weight"} | {f"{key}.alpha"} & lora.keys()
    return merged, used


@pytest.mark.parametrize("merge", [_official_merge, _comfyui_merge])
@pytest.mark.parametrize(("name", "spec"), [("u1", "all=r4a2"), ("a3b", "moe_all=r2a1"), ("u1.5", "attn=r4;mlp=r2a3")])
def test_other_loaders_use_every_key_to_the_same_effect(tmp_path, filled, configs, merge, name, spec):
    adapter = filled(name, spec)
    write_lora(tmp_path / "x.safetensors", adapter)
    generator = torch.Generator().manual_seed(1)
    weights = {key: torch.randn(shape, generator=generator) for key, shape in tensor_shapes(configs[name]).items()}
    lora = load_file(tmp_path / "x.safetensors")
    merged, used = merge(weights, lora)
    assert used == set(lora)
    for key, weight in weights.items():
        module = adapter.modules.get(key.removesuffix(".weight"))
        expected = weight if module is None else weight + module.delta()
        torch.testing.assert_close(merged[key], expected, rtol=0, atol=1e-6)


def test_the_official_codes_files_fit_their_models(oracle):
    for kind, modules in (("dense", 23), ("moe", 14), ("u15", 21)):
        file = read_lora(oracle(kind) / "lora_upstream.safetensors")
        file.adapter.check(Snapshot.open(oracle(kind) / "model").config)
        assert len(file.adapter.modules) == modules


def _broken(adapter):
    good = _tensors(adapter)
    without_up = {key: tensor for key, tensor in good.items() if key != f"{Q0}.lora_up.weight"}
    only_alpha = {key: tensor for key, tensor in good.items() if not key.startswith(f"{Q0}.lora")}
    nan = good[f"{Q0}.lora_up.weight"].clone()
    nan[0, 0] = torch.nan
    return {
        "half of a low-rank term is of no use": without_up,
        f"{Q0} without its down, {Q0} without its up": only_alpha,
        f"{Q0} has rank 4 in down but 3 in up": good | {f"{Q0}.lora_up.weight": torch.ones(64, 3)},
        "only matrices are known, and convolutions": good | {f"{Q0}.lora_up.weight": torch.ones(64, 4, 1)},
        f"{Q0} is I32 and F32": good | {f"{Q0}.lora_down.weight": torch.ones(4, 32, dtype=torch.int32)},
        f"{Q0} is F8_E4M3 and F32": good | {f"{Q0}.lora_down.weight": torch.ones(4, 32).to(torch.float8_e4m3fn)},
        f"{Q0}.lora_up.weight has numbers that are not finite": good | {f"{Q0}.lora_up.weight": nan},
        f"{Q0}.alpha is 0.0": good | {f"{Q0}.alpha": torch.tensor(0.0)},
        f"{Q0}.alpha is [2.0, 2.0]": good | {f"{Q0}.alpha": torch.tensor([2.0, 2.0])},
        f"{Q0}.diff not of any known LoRA form for SenseNova-U1": good | {f"{Q0}.diff": torch.ones(64, 1)},
        "SenseNova-U1: it is a DoRA, and only plain LoRAs are read": good | {f"{Q0}.dora_scale": torch.ones(64, 1)},
        "mixes forms, e.g.": good | {f"diffusion_model.{LAYER}.x.lora_up.weight": torch.ones(1, 1)},
        "mixes forms": good | {f"{LAYER}.mlp_mot_gen.gate_proj.lora_A.weight": torch.ones(1, 32)},
        "are the same thing twice": _tensors(adapter, sides=PEFT) | {f"{Q0}.lora_A.default.weight": torch.ones(4, 32)},
        "is a whole model, not a LoRA": {"language_model.lm_head.weight": torch.ones(2, 2)},
        "holds no tensors": {},
    }


def test_broken_files_are_named(tmp_path, filled):
    for message, tensors in _broken(filled("u1", "attn=r4a2")).items():
        with pytest.raises(U1Error) as caught:
            read_lora(_saved(tmp_path, tensors))
        text = str(caught.value)
        assert text.startswith(str(tmp_path / "x.safetensors")), text
        assert message in text
        assert "\n" not in text


def test_files_that_cannot_be_read(tmp_path, filled):
    path = _saved(tmp_path, _tensors(filled("u1")))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(U1Error, match="is truncated"):
        read_lora(path)
    path.write_bytes(b"PK\x03\x04 not a safetensors file")
    with pytest.raises(U1Error, match="not a safetensors file"):
        read_lora(path)
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(U1Error, match=r"\.pt files are not read, as loading one can run any program"):
        read_lora(tmp_path / "x.pt")
    with pytest.raises(U1Error, match="there is no such LoRA file"):
        read_lora(tmp_path / "y.safetensors")
    with pytest.raises(U1Error, match="is a folder"):
        read_lora(tmp_path)


def test_metadata_that_points_elsewhere_is_refused(tmp_path, filled):
    for name in ("../other.safetensors", "", "x.safetensors"):
        with pytest.raises(U1Error, match="expected the name of another file beside it"):
            read_lora(_saved(tmp_path, _tensors(filled("u1")), {FULL_FILE: name}))


def test_a_file_of_full_tensors_holds_nothing_else(tmp_path, filled):
    for name, other in (("a", "b"), ("b", "a")):
        metadata = {FULL_FILE: f"{other}.safetensors"}
        _saved(tmp_path, _tensors(filled("u1")), metadata, name=f"{name}.safetensors")
    with pytest.raises(U1Error, match=r"b\.safetensors: .*lora_down\.weight.* should not be here"):
        read_lora(tmp_path / "a.safetensors")


def test_metadata_says_how_the_file_is_named(tmp_path, filled):
    write_lora(tmp_path / "x.safetensors", Adapter(filled("u1").modules, kinds=frozenset({"u1.5"})))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "sensenova-u1.5/lora"
    assert metadata["modelspec.title"] == "x"


@pytest.mark.parametrize(
    ("argument", "file", "strength"),
    [
        ("x.safetensors", "x.safetensors", 1.0),
        ("x.safetensors:0.8", "x.safetensors", 0.8),
        ("a/b.safetensors:-1", "a/b.safetensors", -1.0),
        (r"C:\loras\x.safetensors", r"C:\loras\x.safetensors", 1.0),
        (r"C:\loras\x.safetensors:0.8", r"C:\loras\x.safetensors", 0.8),
        ("d:/x.safetensors:2", "d:/x.safetensors", 2.0),
    ],
)
def test_file_and_strength(argument, file, strength):
    path, value = parse_lora_argument(argument)
    assert (str(path), value) == (file, strength)


def test_a_file_with_a_colon_in_its_name(tmp_path):
    path = tmp_path / "x:0.5"
    path.touch()
    assert parse_lora_argument(str(path)) == (path, 1.0)


@pytest.mark.parametrize("argument", ["x.safetensors:strong", "x.safetensors:", ":0.5", "", "x:nan", r"C:\x:1:b"])
def test_bad_strengths(argument):
    with pytest.raises(U1Error, match=r"expected a number such as 0\.8"):
        parse_lora_argument(argument)
