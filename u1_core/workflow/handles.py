"""What nodes hand to each other: small, immutable descriptions. Weights stay in the studio."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file in use, or a LoRA that is being trained."""

    path: str
    strength: float = 1.0
    skip: tuple[str, ...] = ()
    """Module paths to leave out, with all below them."""
    folded: bool = False
    """Whether it is written into the weights that are loaded; not while a run trains on them."""
    live: str = ""
    """A run: its weights as they are at the moment of use, as long as it is training; after that, the file."""


@dataclass(frozen=True)
class Model:
    """A model by where it is, with the LoRAs in effect, in order."""

    name: str
    path: str
    dtype: str = "auto"
    budget: str = "auto"
    loras: tuple[LoraUse, ...] = ()

    def with_lora(self, lora: LoraUse) -> "Model":
        return replace(self, loras=(*self.loras, lora))


@dataclass(frozen=True)
class Dataset:
    """Captioned pictures, and how a caption becomes a prompt."""

    folder: str
    trigger: str = ""
    prompt_template: str = "official"
    megapixels: float = 0.0
    """Largest size a picture is trained at, in units of 1024 x 1024; 0 is the model's own size."""
    snap_bucket: bool = True
    use_think_labels: bool = False


@dataclass(frozen=True)
class PrefixCache:
    """Prefix K/V of a dataset's captions, kept in a folder."""

    dataset: Dataset
    folder: str
    preview_prompts: tuple[str, ...] = ()
    """For runs that name none themselves."""


@dataclass(frozen=True)
class LoraSpec:
    """The modules that a LoRA sits on, in the spec language, and the share of their inputs that training drops."""

    spec: str
    dropout: float = 0.0


@dataclass(frozen=True)
class RunHandle:
    """A training run by its id, which is the name of its folder."""

    id: str


@dataclass(frozen=True)
class Result:
    """What a node gives: its outputs in order, and what it shows of itself."""

    values: tuple[Any, ...]
    text: str = ""
    pictures: Tensor | None = field(default=None, repr=False)
    """(B, H, W, 3) in [0, 1]."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the node's own widget in the browser."""
