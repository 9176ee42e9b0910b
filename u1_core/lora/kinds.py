"""For which kind of model a LoRA file was made, told from what it holds.

U1 and U1.5 share the names and shapes of all but the head, so a file without the head must say, or be known.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from u1_core.errors import U1Error, nearest
from u1_core.model.config import FM_HEAD

KIND_NAMES = {"u1": "U1", "u1.5": "U1.5", "a3b": "A3B"}
KINDS = frozenset(KIND_NAMES)

BASE_KIND = "u1.base_kind"
"""Metadata key of our own files: "u1", "u1.5" or "a3b"."""


@dataclass(frozen=True)
class Evidence:
    """The kinds that something in the file leaves possible, and what it is."""

    kinds: frozenset[str]
    reason: str


def possible_kinds(
    names: Collection[str], ranks_and_alphas: Collection[tuple[int, float]], metadata: Mapping[str, str]
) -> tuple[frozenset[str], str]:
    """(kinds it may be for, how that is known), from the names of its modules and full tensors, each module's rank and
    alpha, and its metadata. Raises U1Error if the file contradicts itself.
    """
    kinds, reasons = KINDS, []
    for evidence in [*_from_metadata(metadata), *_from_names(names)]:
        if not kinds & evidence.kinds:
            raise U1Error(f"the file contradicts itself: {' and '.join([*reasons, evidence.reason])}")
        if kinds - evidence.kinds:
            reasons.append(evidence.reason)
        kinds &= evidence.kinds
    known = _known_file(ranks_and_alphas, metadata)
    # A likeness contradicts nothing: it counts only where what the file says of itself leaves that open.
    if known and known.kinds < kinds:
        kinds, reasons = known.kinds, [*reasons, known.reason]
    return kinds, " and ".join(reasons) or "nothing in it tells"


def kinds_in_words(kinds: Iterable[str]) -> str:
    """{"u1", "u1.5"} -> "U1 or U1.5"."""
    return " or ".join(name for kind, name in KIND_NAMES.items() if kind in kinds)


def _from_metadata(metadata: Mapping[str, str]) -> Iterable[Evidence]:
    if (kind := metadata.get(BASE_KIND)) is not None:
        if kind not in KINDS:
            raise U1Error(f"metadata {BASE_KIND} is {kind!r}, none of {', '.join(KIND_NAMES)}{nearest(kind, KINDS)}")
        yield Evidence(frozenset({kind}), f"its metadata says {KIND_NAMES[kind]}")
    if metadata.get("format", "").startswith("train_u1."):
        yield Evidence(frozenset({"u1", "a3b"}), "it is from a trainer that knows no U1.5")


def _from_names(names: Collection[str]) -> Iterable[Evidence]:
    """U1.5's head is convolutional, U1's and A3B's linear; only A3B has experts."""
    signs = [
        (f"{FM_HEAD}.conv", {"u1.5"}, "which only U1.5 has"),
        (f"{FM_HEAD}.0", {"u1", "a3b"}, "which U1.5 does not have"),
        (f"{FM_HEAD}.2", {"u1", "a3b"}, "which U1.5 does not have"),
        (".experts.", {"a3b"}, "which only A3B has"),
        (".mlp_mot_gen.gate_proj", {"u1", "u1.5"}, "which A3B does not have"),
        (".mlp_mot_gen.up_proj", {"u1", "u1.5"}, "which A3B does not have"),
        (".mlp_mot_gen.down_proj", {"u1", "u1.5"}, "which A3B does not have"),
    ]
    for sign, kinds, words in signs:
        if name := next((name for name in names if sign in name), None):
            yield Evidence(frozenset(kinds), f"it has {name}, {words}")


def _known_file(ranks_and_alphas: Collection[tuple[int, float]], metadata: Mapping[str, str]) -> Evidence | None:
    """The official 8-step LoRA of U1.5 has no head and names no model, but both its forms, with bare keys and for
    ComfyUI, have a tensor_kind. Ranks and alphas alone are anybody's."""
    alike = len(ranks_and_alphas) == 294 and set(ranks_and_alphas) == {(128, 8.0)}
    if not alike or metadata.get("tensor_kind") != "neo_hf_lora":
        return None
    return Evidence(frozenset({"u1.5"}), "294 modules of rank 128 and alpha 8 are U1.5's official 8-step LoRA")
