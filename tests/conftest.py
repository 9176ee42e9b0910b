"""What the tests of several rooms share: oracle folders, the facts beside the checkout, tiny random models."""

import functools
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from u1_core.lora.adapter import LoraModule
from u1_core.model.config import U1Config, linear_modules
from u1_core.model.views import Generation, Understanding
from u1_core.prefix.decode import GrowingPrefix
from u1_core.session import Session
from u1_core.text.sequence import Span, TokenSequence
from u1_core.understand import decode
from u1_core.weights.random_model import RandomWeights, write_random_snapshot
from u1_core.weights.store import load_generation, load_understanding
from u1_core.weights.tiny import KINDS, TINY_HEAD_WIDTH, tiny_config, write_tiny_tokenizer

SHARED = Path(os.environ.get("U1_SHARED") or Path(__file__).resolve().parents[2] / "shared")
# Everything here is tiny: more threads would only wait for each other, several times as long as the work takes.
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what went untested for want of the folder beside the checkout: a skip is easily overlooked."""
    skipped = terminalreporter.stats.get("skipped", [])
    untested = [report.nodeid for report in skipped if str(SHARED) in str(report.longrepr)]
    if untested:
        terminalreporter.section("NOT TESTED", red=True, bold=True)
        terminalreporter.line(f"{SHARED} is missing (or set U1_SHARED), so these did not run:", red=True)
        for nodeid in untested:
            terminalreporter.line(f"  {nodeid}", red=True)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> None:
    """What can be made again is kept apart from the user's, also by programs that tests start."""
    os.environ["U1_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts beside the checkout: the released models' configs and shapes, the whole oracle."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is missing: it holds the facts that this test compares with")
    return SHARED


@pytest.fixture(scope="session")
def compact_oracle(tmp_path_factory) -> Callable[[str], Path]:
    """Kind ("dense", "moe", "u15") -> its compact parity folder, from the repository. Read only."""

    @functools.cache
    def unpack(kind: str) -> Path:
        root = tmp_path_factory.mktemp("oracle")
        with tarfile.open(Path(__file__).parent / "oracle" / f"{kind}.tar.xz") as archive:
            archive.extractall(root, filter="data")
        return root / kind

    return unpack


@pytest.fixture(scope="session")
def oracle(compact_oracle) -> Callable[[str], Path]:
    """Kind -> its parity folder with every case if it lies beside the checkout, else the compact one. Read only."""

    def find(kind: str) -> Path:
        whole = SHARED / "oracle" / kind
        return whole if whole.is_dir() else compact_oracle(kind)

    return find


@dataclass(frozen=True)
class TinyModel:
    """A tiny random model: `source.read(name)` gives the checkpoint's tensors, the towers are made of the same."""

    config: U1Config
    source: RandomWeights
    understanding: Understanding
    generation: Generation


@pytest.fixture(scope="session")
def tiny() -> Callable[..., TinyModel]:
    """(kind, dtype=fp32) -> a tiny model in memory, made once. Read only."""

    @functools.cache
    def make(kind: str, dtype: torch.dtype = torch.float32) -> TinyModel:
        raw = tiny_config(kind)
        head = "fm_modules.fm_head.conv1.weight" if raw["use_pixel_head"] else "fm_modules.fm_head.0.weight"
        config = U1Config.from_dict(raw).with_head_width_of({head: (TINY_HEAD_WIDTH,)})
        source = RandomWeights(config)
        return TinyModel(
            config, source, load_understanding(source, "cpu", dtype), load_generation(source, "cpu", dtype)
        )

    return make


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A tiny snapshot folder of each kind, fp32, made for pictures of 64 tokens. Read only: copy one to change it."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        config = tiny_config(kind) | {"max_image_seq_len": 64}
        write_random_snapshot(root / kind, config, 0, torch.float32, head_width=TINY_HEAD_WIDTH)
        write_tiny_tokenizer(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def session(models) -> Callable[[str], Session]:
    """Kind -> a session of that tiny model, on the CPU in fp32."""
    return lambda kind="u1": Session.open(models[kind], device="cpu")


@pytest.fixture(scope="session")
def random_modules() -> Callable[..., dict[str, LoraModule]]:
    """(config, wanted, rank, alpha, seed=0, dtype=fp32) -> LoRA modules of random numbers for the linear maps and
    convolutions of whose paths `wanted` is true."""

    def make(
        config: U1Config,
        wanted: Callable[[str], bool],
        rank: int,
        alpha: float,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, LoraModule]:
        modules = {}
        for number, (path, (rows, columns)) in enumerate(linear_modules(config).items()):
            if wanted(path):
                generator = torch.Generator().manual_seed(seed * 10_000 + number)
                down, up = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
                modules[path] = LoraModule(down.to(dtype), up.to(dtype), alpha)
        return modules

    return make


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    """Each kind of model in turn."""
    return request.param


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|, in fp64."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.fixture(scope="session")
def close() -> Callable[..., bool]:
    """(ours, theirs, tolerance=1e-6) -> whether they agree, by relative L2 error."""

    def agree(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-6) -> bool:
        error = relative_error(ours, theirs)
        print(f"relative error {error:.2e}, allowed {tolerance:.0e}")  # shown by pytest when the test fails
        return error <= tolerance

    return agree


class Heard(GrowingPrefix):
    """Remembers what is appended: token ids, and the grid of a picture before its end. Its last hidden state is only
    the number of texts' tokens so far, by which a script knows what to say next."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.heard: list = []
        self.last_hidden = torch.tensor(0)

    def append_text(self, ids):
        super().append_text(ids)
        return self._hear(list(ids))

    def append_picture(self, tokens, grid, end_id):
        super().append_picture(tokens, grid, end_id)
        return self._hear([grid])

    def _hear(self, what: list):
        self.heard += what
        self.last_hidden = torch.tensor(sum(isinstance(token, int) for token in self.heard))
        return self.last_hidden


@pytest.fixture
def scripted(monkeypatch) -> Callable[[Session, list[int]], list[Heard]]:
    """(session, script): every prefix of the session says these tokens, then ends its turn, whatever the weights.

    Returns the session's growing prefixes, as they come.
    """

    def speak(session: Session, script: list[int]) -> list[Heard]:
        grown: list[Heard] = []

        def grow(built) -> Heard:
            grown.append(Heard(session.config, session.understanding, built))
            return grown[-1]

        def logits(weights, said) -> torch.Tensor:
            token = script[int(said)] if said < len(script) else session.tokenizer.im_end
            return torch.nn.functional.one_hot(torch.tensor(token), session.config.vocab_size).float()

        monkeypatch.setattr(session, "grow", grow)
        monkeypatch.setattr(decode, "logits", logits)
        return grown

    return speak


@pytest.fixture(scope="session")
def text_of() -> Callable[[list[int]], TokenSequence]:
    """Token ids -> the sequence of that text, which has no picture."""

    def make(ids: list[int]) -> TokenSequence:
        t = torch.arange(len(ids))
        return TokenSequence(torch.tensor(ids), torch.stack([t, t * 0, t * 0]), (Span(0, len(ids), False),), ())

    return make
