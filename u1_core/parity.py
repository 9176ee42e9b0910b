"""Parity: run what the official code ran, on the same weights and inputs, and compare.

A parity folder holds `model/` (a snapshot), `manifest.json` (its cases) and a safetensors file a case with what the
official code computed, in fp32. A case's kind is told by how its name begins.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from u1_core.data.pictures import open_picture, understanding_patches
from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.lora.files import read_lora
from u1_core.model.attention import Segment
from u1_core.model.config import GENERATION, NOISE_SCALE_EMBEDDER, TIMESTEP_EMBEDDER, VISION_GEN
from u1_core.model.embedders import embed_scalar
from u1_core.model.generation import generation_pass
from u1_core.model.pixels import to_patches
from u1_core.model.understanding import embed_picture, embed_tokens, logits, understanding_pass
from u1_core.model.views import KVChunk, PrefixKV
from u1_core.model.vision import embed_patches
from u1_core.sample.edit import edit
from u1_core.sample.euler import draw_noise
from u1_core.sample.guidance import Guidance
from u1_core.sample.interleave import interleave
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session
from u1_core.text import prompts
from u1_core.text.sequence import TokenSequence, build_sequence
from u1_core.train.objective import flow_loss

PASS_TOLERANCE = 1e-5
"""Relative L2 error allowed in one pass through the network."""
LOOP_TOLERANCE = 1e-4
"""… in sampling loops, losses and gradients, where errors add up."""

UNMERGED = "the reference was made without its LoRA, and is compared without it"

Errors = Iterator[tuple[str, float]]
"""What was compared, and its relative error."""


@dataclass(frozen=True)
class Verdict:
    """How one case came out. `error` is the worst relative error, and `at` what it was found in."""

    case: str
    error: float
    tolerance: float
    at: str
    note: str = ""
    """What a reader should know of the reference itself."""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def run_parity(
    folder: Path, on_verdict: Callable[[Verdict], None] = lambda verdict: None, device: str = "cpu"
) -> list[Verdict]:
    """Run every case of a parity folder in fp32. Raises U1Error for a folder that is none.

    On a card the fast kernels take part; its tensor cores' shortcuts for fp32 do not.
    """
    oracle = Oracle(folder, device)
    verdicts, shortcuts = [], torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for name, case in oracle.cases.items():
            verdicts.append(_judge(oracle, name, case))
            on_verdict(verdicts[-1])
    finally:
        torch.backends.cudnn.allow_tf32 = shortcuts
    return verdicts


class _ReferenceNoise(Session):
    """A session whose noise is what the reference's was, drawn on a CPU, wherever it computes."""

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)


class Oracle:
    """A parity folder, opened."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.cases = _read_cases(folder / "manifest.json")
        self.session = _ReferenceNoise.open(folder / "model", device=device, dtype="fp32")

    def expected(self, name: str) -> dict[str, Tensor]:
        """What the official code computed for a case, on the session's device."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            raise U1Error(f"{path}: the case is in the manifest, but its tensors are missing")
        try:
            return _Named(str(path), load_file(path, device=str(self.session.device)))
        except (SafetensorError, OSError) as problem:
            raise U1Error(f"{path}: cannot be read ({problem})") from None

    def prefix(self, name: str) -> PrefixKV:
        """The K/V of a prefix case, as we compute it."""
        return self.session.build_prefixes([self.sequence(name)])[0].kv

    def sequence(self, name: str) -> TokenSequence:
        return build_sequence(self.session.tokenizer, self.cases[name]["query"])

    def pictures(self, case: Mapping[str, Any]) -> list[Image.Image]:
        return [open_picture(self.folder / name) for name in case["images"]]

    def lora(self, case: Mapping[str, Any]) -> Adapter:
        return read_lora(self.folder / case["lora"]).adapter.to(self.session.device)

    def lora_missing_from(self, name: str, case: Mapping[str, Any]) -> bool:
        """Whether a LoRA case's picture is, bit for bit, that of another case which is the same but for the LoRA.

        A LoRA changes the picture; such a reference was saved before its LoRA was merged.
        """
        if "lora" not in case or "prompt" not in case:
            return False
        same = {key: value for key, value in case.items() if key not in ("lora", "modules", "note")}
        twins = [other for other, settings in self.cases.items() if settings == same]
        image = self.expected(name)["image"]
        return any(torch.equal(image, self.expected(twin)["image"]) for twin in twins)

    @cached_property
    def output_size(self) -> int:
        return self.session.config.token_pixels

    def to_output_patches(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> the head's layout (B, tokens, size * size * 3), as the reference stores it."""
        size = self.output_size
        return to_patches(x, size).unflatten(-1, (3, size, size)).movedim(3, -1).flatten(-3).flatten(1, 2)


class _Named(dict[str, Any]):
    """What a file holds by name: asking for something that it lacks is a fault of the file."""

    def __init__(self, where: str, items: Mapping[str, Any]) -> None:
        super().__init__(items)
        self._where = where

    def __missing__(self, key: str) -> Any:
        raise U1Error(f"{self._where}: there is no {key!r}, which the case needs")


def _read_cases(manifest: Path) -> _Named:
    """The cases of a manifest by name, each with its settings. Raises U1Error if it is none, or has none."""
    try:
        cases = json.loads(manifest.read_text(encoding="utf-8"))["cases"]
        named = {name: _Named(f"{manifest}: {name}", case) for name, case in cases.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise U1Error(f"{manifest}: not the manifest of a parity folder ({problem})") from None
    if not named:
        raise U1Error(f"{manifest}: has no cases, so there is nothing to compare")
    return _Named(str(manifest), named)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, in fp64; infinite if the shapes differ or ours is not finite."""
    if ours.shape != theirs.shape or not ours.isfinite().all():
        return float("inf")
    ours, theirs = ours.to(theirs.device).double(), theirs.double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def _judge(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Verdict:
    for prefix, (check, tolerance) in CHECKS.items():
        if name.startswith(prefix):
            errors = dict(check(oracle, name, case))
            at = max(errors, key=lambda key: (math.isnan(errors[key]), errors[key]))
            return Verdict(name, errors[at], tolerance, at, UNMERGED if oracle.lora_missing_from(name, case) else "")
    raise U1Error(f"{oracle.folder}: case {name!r} is of no known kind ({', '.join(CHECKS)})")


def _equal(ours: Any, theirs: Any) -> float:
    """0 or infinity: tokens and texts are right or wrong."""
    return 0.0 if ours == theirs else float("inf")


@torch.no_grad()
def _check_prefix(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Errors:
    session, expected = oracle.session, oracle.expected(name)
    config, sequence = session.config, oracle.sequence(name)
    yield "input_ids", _equal(sequence.ids.tolist(), expected["input_ids"][0].tolist())
    yield "positions", _equal(sequence.positions.tolist(), expected["indexes_thw"].tolist())
    span = (0, len(sequence.ids))
    segments = [Segment(*span, keys=(span,), causal=True)]
    h, positions = embed_tokens(session.understanding, sequence.ids), sequence.positions.to(session.device)
    hidden, k, v = understanding_pass(config, session.understanding, h, positions, segments)
    if "hidden" in expected:
        yield "hidden", relative_error(hidden, expected["hidden"][0])
    yield from _compare_kv("direct", PrefixKV((KVChunk(k, v),), sequence.next_t), expected)
    # Built beside another prompt, most of it becomes the head that both share.
    beside = build_sequence(session.tokenizer, prompts.text_to_image("something else", think=False))
    built = session.build_prefixes([sequence, beside])[0]
    yield from _compare_kv("built", built.kv, expected)


def _compare_kv(how: str, ours: PrefixKV, expected: Mapping[str, Tensor]) -> Errors:
    for key in expected:
        if key.startswith(("k.", "v.")):
            parts = [pair["kv".index(key[0])] for pair in ours.layer(int(key[2:]))]
            yield f"{how} {key}", relative_error(torch.cat(parts).transpose(0, 1), expected[key][0])


@torch.no_grad()
def _check_gen_step(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Errors:
    session, expected = oracle.session, oracle.expected(name)
    config, weights, z = session.config, session.generation, expected["noisy_image"]
    batch, tokens = len(z), z.shape[2] * z.shape[3] // config.token_pixels**2
    t = expected["t"].expand(batch)
    yield "noise scale", abs(config.noise_scale_for(tokens) - case["noise_scale"])
    vision = embed_patches(config, weights.modules, VISION_GEN, to_patches(z, config.patch_size))
    yield "vision_tokens", relative_error(vision, expected["vision_tokens"])
    scale = torch.full_like(t, config.noise_scale_for(tokens) / config.noise_scale_max)
    for key, prefix, value in (
        ("timestep_embedding", TIMESTEP_EMBEDDER, t),
        ("noise_embedding", NOISE_SCALE_EMBEDDER, scale),
    ):
        yield key, relative_error(embed_scalar(weights.modules, prefix, value)[:, None], expected[key])
    x_pred = generation_pass(config, weights, z, t, [oracle.prefix(case["prefix"])] * batch)
    yield "x_pred", relative_error(oracle.to_output_patches(x_pred), expected["x_pred"])
    v = (x_pred - z) / (1 - t).clamp(min=case["t_eps"]).view(-1, 1, 1, 1)
    yield "v_pred", relative_error(oracle.to_output_patches(v), expected["v_pred"])


def _settings(case: Mapping[str, Any]) -> SampleSettings:
    guidance = Guidance(
        cfg_scale=case["cfg_scale"],
        image_cfg_scale=case.get("img_cfg_scale", 1.0),
        norm=case.get("cfg_norm", "none"),
        interval=tuple(case.get("cfg_interval", (0.0, 1.0))),
    )
    return SampleSettings(
        case["width"],
        case["height"],
        case["num_steps"],
        case["timestep_shift"],
        case["seed"],
        case.get("batch_size", 1),
        case["t_eps"],
        guidance,
    )


def _input_limits(case: Mapping[str, Any]) -> tuple[int, int] | None:
    return (case["input_min_pixels"], case["input_max_pixels"]) if "input_min_pixels" in case else None


def _check_noise(oracle: Oracle, case: Mapping[str, Any], expected: Mapping[str, Tensor]) -> Errors:
    settings, session = _settings(case), oracle.session
    noise = draw_noise(session.config, settings.shape, session.generator(settings.seed), session.dtype)
    if "initial_noise" in expected:
        yield "initial_noise", relative_error(noise, expected["initial_noise"])


def _check_text_to_image(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Errors:
    expected, session = oracle.expected(name), oracle.session
    yield from _check_noise(oracle, case, expected)
    merged = "lora" in case and not oracle.lora_missing_from(name, case)
    session.use([oracle.lora(case)] if merged else [])
    try:
        drawn = text_to_image(session, case["prompt"], _settings(case), think="think_text" in case)
    finally:
        session.use([])
    yield "think_text", _equal(drawn.think_text, case.get("think_text", ""))
    yield "image", relative_error(drawn.pictures, expected["image"])


def _check_edit(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Errors:
    expected = oracle.expected(name)
    yield from _check_noise(oracle, case, expected)
    pictures, limits = oracle.pictures(case), _input_limits(case)
    drawn = edit(oracle.session, case["prompt"], pictures, _settings(case), limits=limits)
    yield "image", relative_error(drawn.pictures, expected["image"])


def _check_interleave(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Errors:
    expected, text, drawn = oracle.expected(name), "", []
    told = interleave(
        oracle.session,
        case["prompt"],
        [],
        _settings(case),
        system=case["system_message"],
        max_tokens=case["max_new_tokens"],
    )
    for piece in told:
        if isinstance(piece, str):
            text += piece
        else:
            text += "<image>"
            drawn.append(piece)
    yield "text", _equal(text, case["text"])
    yield "pictures", _equal(len(drawn), case["images"])
    for index, picture in enumerate(drawn):
        yield f"image.{index}", relative_error(picture, expected[f"image.{index}"])


@torch.no_grad()
def _check_vision(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Errors:
    session, expected = oracle.session, oracle.expected(name)
    picture = understanding_patches(open_picture(oracle.folder / case["image"]), session.config, *_input_limits(case))
    yield "grid_hw", _equal(list(picture.grid), expected["grid_hw"][0].tolist())
    yield "pixel_patches", relative_error(picture.patches, expected["pixel_patches"])
    tokens = embed_picture(session.config, session.understanding, picture.patches.unflatten(0, picture.grid))
    yield "tokens", relative_error(tokens, expected["tokens"])


@torch.no_grad()
def _check_understand(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Errors:
    session, expected = oracle.session, oracle.expected(name)
    picture = understanding_patches(open_picture(oracle.folder / case["image"]), session.config, *_input_limits(case))
    sequence = build_sequence(
        session.tokenizer, prompts.ask(case["question"], 1), (picture,), merge=session.config.merge
    )
    yield "input_ids", _equal(sequence.ids.tolist(), expected["input_ids"][0].tolist())
    yield "positions", _equal(sequence.positions.tolist(), expected["indexes_thw"].tolist())
    prefix = session.grow(*session.build_prefixes([sequence]))
    rows, said = [logits(session.understanding, prefix.last_hidden)], []
    while len(said) < len(expected["generated"]):
        said.append(int(rows[-1].argmax()))
        prefix.append_text(said[-1:])
        rows.append(logits(session.understanding, prefix.last_hidden))
    yield "generated", _equal(said, expected["generated"].tolist())
    yield "logits", relative_error(torch.stack(rows), expected["logits"])


def _check_train_step(oracle: Oracle, name: str, case: Mapping[str, Any]) -> Errors:
    session, expected = oracle.session, oracle.expected(name)
    config, adapter = session.config, oracle.lora(case)
    x0, noise, t = expected["image"], expected["noise"], expected["t"]
    z = torch.lerp(noise, x0, t.view(-1, 1, 1, 1))
    prefix = oracle.prefix(case["prefix"])
    for parameter in adapter.parameters():
        parameter.requires_grad_(True)
    terms = tower_terms(config, [adapter], GENERATION)
    for loss_type, theirs in case["losses"].items():
        x_pred = generation_pass(config, session.generation, z, t, [prefix] * len(z), terms, recompute=True)
        loss = flow_loss(loss_type, x_pred, x0, z, t, config.t_eps)
        yield f"loss {loss_type}", abs(loss.item() - theirs) / abs(theirs)
        if loss_type in ("x0", "v"):
            yield from _compare_gradients(adapter, loss, f"grad_{loss_type}", expected)
    yield "x_pred", relative_error(oracle.to_output_patches(x_pred.detach()), expected["x_pred"])


def _compare_gradients(adapter: Adapter, loss: Tensor, prefix: str, expected: Mapping[str, Tensor]) -> Errors:
    modules = list(adapter.modules.items())
    parameters = [tensor for _, module in modules for tensor in (module.down, module.up)]
    gradients = iter(torch.autograd.grad(loss, parameters))
    for path, _ in modules:
        for part in ("lora_down", "lora_up"):
            yield f"{prefix}.{path}.{part}", relative_error(next(gradients), expected[f"{prefix}.{path}.{part}"])


CHECKS: dict[str, tuple[Callable[[Oracle, str, Mapping[str, Any]], Errors], float]] = {
    "prefix": (_check_prefix, PASS_TOLERANCE),
    "gen_step": (_check_gen_step, PASS_TOLERANCE),
    "t2i": (_check_text_to_image, LOOP_TOLERANCE),
    "edit": (_check_edit, LOOP_TOLERANCE),
    "interleave": (_check_interleave, LOOP_TOLERANCE),
    "vision_understanding": (_check_vision, PASS_TOLERANCE),
    "understand": (_check_understand, PASS_TOLERANCE),
    "train_step": (_check_train_step, LOOP_TOLERANCE),
}
"""How a case's name begins -> its check and its tolerance."""
