"""Distil U1-nano's 50 guided steps into 8 unguided ones: its 8-step LoRA, in the official files' form.

    python -m tools.nano.distill MODEL --out nano_8step.safetensors --minutes 8

The teacher follows its guided flow in fine steps that pass through the student's nine times. First the student learns
each of its eight strides along the teacher's path; then whole eight-step pictures are held against the teacher's, with
gradients through all eight steps.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from u1_core.lora.adapter import Adapter, tower_terms
from u1_core.lora.files import write_lora
from u1_core.lora.plan import plan_lora
from u1_core.model.config import GENERATION
from u1_core.sample.euler import T_EPS
from u1_core.sample.schedule import sampling_timesteps
from u1_core.session import Session

from .dataset import Dataset
from .losses import Prefixes, Prompts, draw_pass, prefix_pass
from .model import SIZE

SPEC, STEPS, SHIFT, CFG = "all=r64a32", 8, 3.0, 4.0
SUBSTEPS = 6
"""The teacher's steps within each of the student's: 48 in all."""
TEACHER_BATCH, STRIDE_BATCH, PICTURE_BATCH = 512, 256, 64
STRIDE_RATE, PICTURE_RATE = 1e-3, 3e-4
STRIDE_SHARE = 0.4
"""How much of the time goes to single strides."""


class Distillation:
    """The teacher, the student's LoRA beside it, and the paths that the teacher has drawn."""

    def __init__(self, session: Session, dataset: Dataset, pictures: int) -> None:
        self.session, self.config = session, session.config
        self.rows = dataset.rows["draw"]
        self.unconditional = prefix_pass(self.config, session.understanding, dataset.unconditional())[1]
        self.times = sampling_timesteps(STEPS, SHIFT).to(session.device)
        self.adapter = Adapter.create(plan_lora(self.config, SPEC), seed=0, device=session.device)
        self.which = torch.randperm(len(self.rows.ids), device=session.device)[:pictures]
        paths = [self._teach(which) for which in self.which.split(TEACHER_BATCH)]
        self.paths = torch.cat(paths, dim=1)

    def prefixes(self, which: Tensor) -> Prefixes:
        prompts = Prompts(self.rows.head, self.rows.ids[which].long(), self.rows.lengths[which])
        return prefix_pass(self.config, self.session.understanding, prompts)[1]

    @torch.no_grad()
    def _teach(self, which: Tensor) -> Tensor:
        """The teacher's states at the student's nine times, (9, B, 3, H, W) bf16, for these prompts."""
        prefixes = self.prefixes(which)
        scale = self.config.noise_scale_for((SIZE // self.config.token_pixels) ** 2)
        z = torch.randn(len(which), 3, SIZE, SIZE, device=self.session.device) * scale
        dropped = torch.ones(len(which), dtype=torch.bool, device=z.device)
        path = [z.bfloat16()]
        for start, end in pairwise(self.times):
            fine = torch.lerp(start, end, torch.linspace(0, 1, SUBSTEPS + 1, device=z.device))
            for t, t_next in pairwise(fine):
                v_c = self._velocity(prefixes, z, t)
                v_u = self._velocity(prefixes, z, t, self.unconditional, dropped)
                z = z + (t_next - t) * (v_u + CFG * (v_c - v_u))
            path.append(z.bfloat16())
        return torch.stack(path)

    def _velocity(self, prefixes: Prefixes, z: Tensor, t: Tensor, *guidance: object, terms=None) -> Tensor:
        weights, times = self.session.generation, t.expand(len(z))
        x_pred = draw_pass(self.config, weights, prefixes, z, times, *guidance, terms=terms)
        return (x_pred - z) / (1 - times).clamp(min=T_EPS).view(-1, 1, 1, 1)

    def stride_loss(self) -> Tensor:
        """How far single strides end from the teacher's, for random pictures, each at a stride of its own."""
        pick = torch.randint(len(self.which), (STRIDE_BATCH,), device=self.times.device)
        stride = torch.randint(STEPS, (STRIDE_BATCH,), device=self.times.device)
        z, z_next = (self.paths[stride + i, pick].float() for i in (0, 1))
        t, length = self.times[stride], (self.times[stride + 1] - self.times[stride]).view(-1, 1, 1, 1)
        v = self._velocity(self.prefixes(self.which[pick]), z, t, terms=self.terms())
        return (z + length * v - z_next).square().mean()

    def picture_loss(self) -> Tensor:
        """How far whole eight-step pictures are from the teacher's."""
        pick = torch.randint(len(self.which), (PICTURE_BATCH,), device=self.times.device)
        prefixes, terms, z = self.prefixes(self.which[pick]), self.terms(), self.paths[0, pick].float()
        for t, t_next in pairwise(self.times):
            z = z + (t_next - t) * self._velocity(prefixes, z, t, terms=terms)
        return (z - self.paths[-1, pick].float()).abs().mean()

    def terms(self):
        return tower_terms(self.config, [self.adapter], GENERATION)

    def fit(self, loss: Callable[[], Tensor], seconds: float, rate: float) -> list[dict[str, float]]:
        """Minimise for so many seconds, the learning rate going down to nothing. Returns the curve."""
        parameters = self.adapter.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        started, step, curve = time.monotonic(), 0, []
        while (share := (time.monotonic() - started) / seconds) < 1:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 50) * (1 - share)
            value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 50 == 0:
                curve.append({"step": step, "seconds": time.monotonic() - started, "loss": value.item()})
                print(loss.__name__, json.dumps(curve[-1]), flush=True)
            step += 1
        return curve


def main() -> None:
    args = _arguments()
    torch.manual_seed(args.seed)
    session = Session.open(args.model, args.device)
    tokenizer = tokenizers.Tokenizer.from_file(str(args.model / "tokenizer.json"))
    dataset = Dataset.make(args.scenes, args.seed + 100, session.device, args.workers, tokenizer)
    started = time.monotonic()
    distillation = Distillation(session, dataset, args.pictures)
    print(f"{args.pictures} paths in {time.monotonic() - started:.0f} s", flush=True)
    seconds = args.minutes * 60
    curves = {
        "strides": distillation.fit(distillation.stride_loss, seconds * STRIDE_SHARE, STRIDE_RATE),
        "pictures": distillation.fit(distillation.picture_loss, seconds * (1 - STRIDE_SHARE), PICTURE_RATE),
    }
    metadata = {"steps": str(STEPS), "cfg": "1", "timestep_shift": str(SHIFT)}
    write_lora(args.out, distillation.adapter, metadata)
    if args.log:
        args.log.write_text(json.dumps(curves), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--pictures", type=int, default=24_576, help="teacher paths, 2 MB of GPU memory each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--log", type=Path, help="JSON file for the curves")
    return parser.parse_args()


if __name__ == "__main__":
    main()
