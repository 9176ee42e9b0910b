"""Train U1-nano from nothing: pictures from captions, edits, and words about pictures, both towers at once.

    python -m tools.nano.train --out nano --minutes 20

On one GPU of the H200's class, a first minute makes the scenes on all CPU cores. v-loss with logit-normal timesteps
(-0.8, 0.8) and captions dropped 10% of the time, cross-entropy of answers beside it; AdamW with a warm-up and a linear
decay to nothing over the given minutes, and an exponential moving average, which is what is saved. Ctrl-C ends the run
before its time.
"""

import argparse
import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from u1_core.kernels.switch import plain
from u1_core.model.config import EMBED_TOKENS, U1Config, tensor_shapes
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.snapshot import Snapshot

from .dataset import EDIT_EVERY, Dataset, Task
from .losses import Prompts, draw_pass, picture_loss, prefix_pass, words_loss
from .model import HEAD_WIDTH, SIZE, nano_config, towers, write_snapshot

TASKS, BATCH = ("draw", "edit", "ask"), (192, 48, 64)
WEIGHTS = {"draw": 1.0, "edit": 0.5, "ask": 0.2}
LEARNING_RATE, WARMUP_STEPS, LOG_EVERY, HARDNESS_BATCH = 1e-3, 500, 200, 64
DROPPED = 0.1
EMA_DECAY = 0.9995
T_MEAN, T_STD = -0.8, 0.8


@dataclass
class Clock:
    """How far the run is, by time: the share of it that is gone sets the learning rate."""

    seconds: float
    started: float = 0.0

    def stop(self) -> None:
        self.seconds = 0.0

    def share(self) -> float:
        """1 when the time is up."""
        return 1.0 if not self.seconds else min(1.0, (time.monotonic() - self.started) / self.seconds)


def main() -> None:
    args = _arguments()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device(args.device)
    config = U1Config.from_dict(nano_config())
    config = config.with_head_width_of({"fm_modules.fm_head.0.weight": (HEAD_WIDTH, config.width)})
    tokenizer = Tokenizer.from_file(str(args.start / "tokenizer.json")) if args.start else None
    dataset = Dataset.make(args.scenes, args.scenes_seed, device, args.workers, tokenizer, args.edit_every)
    print(f"{args.scenes} scenes in {dataset.seconds:.0f} s; prompt lengths {dataset.lengths()}", flush=True)
    start = Snapshot.open(args.start) if args.start else RandomWeights(config, args.seed)
    parameters = {name: start.read(name).to(device, torch.float32).requires_grad_() for name in tensor_shapes(config)}
    # The compiler makes its own kernels of plain PyTorch, and ours would cut its graph into pieces.
    with plain():
        if args.hardest < 1:
            keep_hardest(config, parameters, dataset, args.hardest)
        average = train(config, parameters, dataset, args)
    write_snapshot(args.out, nano_config(), dataset.tokenizer, average)
    print(f"wrote {args.out}")


def train(
    config: U1Config, parameters: dict[str, Tensor], dataset: Dataset, args: argparse.Namespace
) -> dict[str, Tensor]:
    """Run the loop for `args.minutes`. Returns the moving average of the parameters."""
    optimizer = torch.optim.AdamW(parameters.values(), lr=args.rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    average = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    losses = Losses(config, parameters, dataset, args)
    clock, step, history = Clock(args.minutes * 60), 0, []
    signal.signal(signal.SIGINT, lambda *_: clock.stop())
    while True:
        by_task = losses.at(step)
        if step == 0:
            clock.started = time.monotonic()
        share = clock.share()
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1.0, (step + 1) / args.warmup) * (1 - share)
        sum(WEIGHTS[task] * loss for task, loss in by_task.items()).backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay = min(args.ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
        if step % LOG_EVERY == 0 or share >= 1:
            history.append({"step": step, "seconds": time.monotonic() - clock.started} | _named(by_task))
            print(json.dumps(history[-1]), flush=True)
        step += 1
        if share >= 1:
            break
    if args.log:
        args.log.write_text(
            json.dumps({"seed": args.seed, "scenes": args.scenes, "history": history}), encoding="utf-8"
        )
    return average


@torch.no_grad()
def keep_hardest(config: U1Config, parameters: dict[str, Tensor], dataset: Dataset, share: float) -> None:
    """Leave, of the edits, those that the model draws worst when it begins: there it decides what they come to."""
    understanding, generation = towers(config, parameters, dtype_on(parameters))
    device = parameters[EMBED_TOKENS].device
    errors = []
    for which in torch.arange(len(dataset.rows["edit"].ids), device=device).split(HARDNESS_BATCH):
        task = dataset.take("edit", which)
        x0 = task.target.float() / 127.5 - 1
        noise = torch.randn_like(x0) * config.noise_scale_for((SIZE // config.token_pixels) ** 2)
        x_pred = draw_pass(
            config, generation, prefix_pass(config, understanding, task.prompts)[1], noise, torch.zeros(len(x0)).to(x0)
        )
        errors.append((x_pred - x0).square().mean((1, 2, 3)))
    hardness = torch.cat(errors)
    dataset.keep("edit", hardness.topk(int(share * len(hardness))).indices)
    print(f"the hardest {share:.0%} of {len(hardness)} edits: {hardness.mean():.4f} in the mean", flush=True)


class Losses:
    """The losses of a step's tasks, each of a random batch; not every task is in every step."""

    def __init__(
        self, config: U1Config, parameters: dict[str, Tensor], dataset: Dataset, args: argparse.Namespace
    ) -> None:
        self._config, self._parameters, self._dataset, self._args = config, parameters, dataset, args
        self._empty = dataset.unconditional()
        # Each task is compiled by itself: one graph of all three takes several times as long.
        loss = {"draw": drawing_loss, "edit": drawing_loss, "ask": answering_loss}
        self._loss = {task: torch.compile(f) if task in args.compile else f for task, f in loss.items()}

    def at(self, step: int) -> dict[str, Tensor]:
        """Task -> its loss, of the tasks that are in this step."""
        every = zip(TASKS, self._args.every, self._args.batch, strict=True)
        return {task: self._of(task, size) for task, steps, size in every if step % steps == 0}

    def _of(self, task: str, size: int) -> Tensor:
        model, draw, loss = (self._config, self._parameters), self._dataset.draw, self._loss[task]
        if task == "ask":
            return loss(*model, draw(task, size))
        if task == "draw":
            return loss(*model, self._empty, draw(task, size), DROPPED, T_MEAN)
        if torch.rand(()) < DROPPED:
            # Without its words, all of a batch at once: its picture stands elsewhere then, which is another graph.
            return drawing_loss(*model, self._empty, draw("edit text-free", size), 0.0, self._args.edit_t_mean)
        return loss(*model, self._empty, draw(task, size), 0.0, self._args.edit_t_mean)


def dtype_on(parameters: dict[str, Tensor]) -> torch.dtype:
    """What the passes compute in: CPUs are no quicker in bf16."""
    return torch.bfloat16 if parameters[EMBED_TOKENS].is_cuda else torch.float32


def drawing_loss(
    config: U1Config, parameters: dict[str, Tensor], empty: Prompts, task: Task, drop: float, t_mean: float
) -> Tensor:
    """The v-loss of a batch of pictures; the share `drop` of them is drawn from the empty prompt."""
    understanding, generation = towers(config, parameters, dtype_on(parameters))
    _, unconditional = prefix_pass(config, understanding, empty)
    _, prefixes = prefix_pass(config, understanding, task.prompts)
    x0 = task.target.float() / 127.5 - 1
    noise = torch.randn_like(x0) * config.noise_scale_for((SIZE // config.token_pixels) ** 2)
    t = torch.sigmoid(torch.randn(len(x0), device=x0.device) * T_STD + t_mean).clamp(config.t_eps, 1 - config.t_eps)
    dropped = torch.rand(len(x0), device=x0.device) < drop
    return picture_loss(config, generation, prefixes, x0, noise, t, unconditional, dropped)


def answering_loss(config: U1Config, parameters: dict[str, Tensor], task: Task) -> Tensor:
    """The cross-entropy of a batch of answers."""
    understanding, _ = towers(config, parameters, dtype_on(parameters))
    hidden, _ = prefix_pass(config, understanding, task.prompts)
    return words_loss(understanding, hidden, task.prompts, task.answer_from)


def _named(by_task: dict[str, Tensor]) -> dict[str, float]:
    values = {task: round(loss.item(), 5) for task, loss in by_task.items()}
    if not all(map(math.isfinite, values.values())):
        raise SystemExit(f"the loss is {values}")
    return values


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="snapshot folder to write")
    parser.add_argument("--minutes", type=float, default=20, help="training time, the scenes' making not counted")
    parser.add_argument("--scenes", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes-seed", type=int, default=0, help="another seed, other scenes")
    parser.add_argument("--edit-every", type=int, default=EDIT_EVERY, help="one scene in this many comes with an edit")
    parser.add_argument("--batch", type=int, nargs=3, default=BATCH, metavar=("DRAW", "EDIT", "ASK"))
    parser.add_argument("--every", type=int, nargs=3, default=(1, 1, 1), metavar=("DRAW", "EDIT", "ASK"), help="steps")
    parser.add_argument(
        "--hardest", type=float, default=1.0, help="share of the edits, by the model's error, to train on"
    )
    parser.add_argument("--edit-t-mean", type=float, default=T_MEAN, help="of the edits' logit-normal timesteps")
    parser.add_argument("--warmup", type=int, default=WARMUP_STEPS, help="steps")
    parser.add_argument("--ema", type=float, default=EMA_DECAY, help="decay of the moving average")
    parser.add_argument("--start", type=Path, help="go on from this snapshot instead of from nothing")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="learning rate to begin with")
    parser.add_argument("--workers", type=int, default=16, help="processes that make scenes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--log", type=Path, help="JSON file for the curves")
    parser.add_argument("--compile", nargs="*", choices=TASKS, default=TASKS, help="minutes each, the first time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
