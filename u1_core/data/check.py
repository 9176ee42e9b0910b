"""What is wrong with a set of pictures and captions, told before a run is spent on it.

Every finding says how bad it is: "stops" makes training on it impossible, "hurts" will show in the result, a "note" is
to be known. Captions are all read; pictures are all looked at, or of a very large set a few thousand spread over it.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from u1_core.data.captions import shared_phrases, words_of
from u1_core.data.dataset import Dataset, FolderDataset
from u1_core.data.folder import MASK_SUFFIX, Sample
from u1_core.data.framing import Frame, Framing
from u1_core.data.picture_cache import PictureCache
from u1_core.data.similar import Fingerprint, fingerprint, near_duplicates
from u1_core.errors import U1Error
from u1_core.text.sequence import put_pictures
from u1_core.text.tokenizer import SPECIAL_TOKENS

LOOKED_AT = 2048
"""Pictures looked at of a larger set, and captions compared for what they share."""
COMPARED = 10_000
"""Pictures at most that are compared with each other, each with all."""
LONGEST_TOKENS, LONGEST_WORDS = 512, 350
"""Longer captions are longer than the prompts that people will write; words count where there is no tokenizer."""
FEWEST_WORDS, FEWEST_CHARACTERS = 3, 12
"""A caption with fewer of both says little; scripts without spaces need few words."""
ENLARGED_MUCH, LOST_MUCH, RATIO_MUCH = 1.25, 0.25, 3.5
TOO_MANY = 2
"""Times the pixels that a model draws: beyond it, training is far from what it has learned, and slow."""
REPEATS_MANY = 100
SHOWN, NAMED = 5, 50
"""Places that a line names; repeated captions, and places of each, that are told of."""

SEVERITIES = ("stops", "hurts", "note")
NOT_READ = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".raw", ".cr2", ".nef", ".dng")
MEND = "mend it or move it away"
SHORTEN = "shorten it to what a prompt would say"

Encode = Callable[[str], Sequence[int]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Finding:
    """One thing to know."""

    severity: str
    """"stops", "hurts" or "note"."""
    what: str
    where: tuple[str, ...]
    """Sample ids, or file names; empty where it concerns the set as a whole."""
    advice: str

    def __str__(self) -> str:
        shown = ", ".join(self.where[:SHOWN]) + f" and {len(self.where) - SHOWN} more" * (len(self.where) > SHOWN)
        return f"{self.severity}: {shown + ': ' if shown else ''}{self.what}; {self.advice}"


@dataclass(frozen=True)
class Rules:
    """What the set is checked for, besides its own soundness: the recipe's words, and the model's tokenizer if any."""

    framing: Framing
    trigger: str = ""
    masks: str = "none"
    use_think: bool = False
    encode: Encode | None = None
    native_pixels: int = 0
    """What the model itself draws; 0 where no model is at hand."""


class Findings:
    """Findings as they come in; those of the same words become one with all the places."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str, str], list[str]] = {}

    def add(self, severity: str, what: str, advice: str, *where: str) -> None:
        self._places.setdefault((severity, what, advice), []).extend(where)

    def listed(self) -> list[Finding]:
        """The worst first, else in the order in which they came."""
        found = [Finding(severity, what, tuple(w), advice) for (severity, what, advice), w in self._places.items()]
        return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def check_dataset(
    dataset: Dataset,
    pictures: PictureCache,
    rules: Rules,
    everything: bool = False,
    on_progress: Progress | None = None,
) -> list[Finding]:
    """Everything found, the worst first. Pictures that fit stay in the cache. `everything` spares a large set nothing.

    `on_progress` is called with (pictures looked at, pictures to be looked at).
    """
    findings = Findings()
    for name, words in sorted(dataset.problems.items()):
        findings.add("stops", words, MEND, name)
    _check_captions(dataset, rules, findings)
    numbers = range(len(dataset)) if everything else spread(len(dataset), LOOKED_AT)
    _check_pictures(dataset, pictures, rules, numbers, findings, on_progress)
    if isinstance(dataset, FolderDataset):
        _check_files(dataset, rules, findings)
    return findings.listed()


def problems_of(findings: Iterable[Finding]) -> dict[str, str]:
    """Sample id -> what makes training on it impossible."""
    return {name: finding.what for finding in findings if finding.severity == "stops" for name in finding.where}


def spread(count: int, most: int) -> Sequence[int]:
    """`most` numbers below `count`, evenly apart, or all of them."""
    return range(count) if count <= most else [i * count // most for i in range(most)]


def _check_captions(dataset: Dataset, rules: Rules, findings: Findings) -> None:
    # The numbers that captions hash to, not the captions: there may be millions.
    hashes = np.empty(len(dataset), dtype=np.int64)
    for number, sample in enumerate(dataset):
        hashes[number] = hash(sample.caption)
        _check_caption(sample, rules, findings)
    for same in _repeated(hashes):
        names = [dataset[number].id for number in same[:NAMED]]
        findings.add("note", f"{len(same)} pictures have the same caption", "say what each alone shows", *names)
    shared = shared_phrases([dataset[number].caption for number in spread(len(dataset), LOOKED_AT)])
    if shared:
        listed = ", ".join(f"{phrase!r} ({share:.0%})" for phrase, share in list(shared.items())[:SHOWN])
        advice = "what each caption says, prompts must say too; leave the style to the trigger and the pictures"
        findings.add("hurts", f"most captions share {listed}", advice)


def _repeated(hashes: np.ndarray) -> list[list[int]]:
    """The largest groups of equal numbers, as indexes, NAMED groups at most."""
    order = np.argsort(hashes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(hashes[order])) + 1)
    return [group.tolist() for group in sorted(groups, key=len, reverse=True)[:NAMED] if len(group) > 1]


def _check_caption(sample: Sample, rules: Rules, findings: Findings) -> None:
    caption, words = sample.caption, len(words_of(sample.caption))
    if not caption:
        findings.add("stops", "the caption is empty", MEND, sample.id)
        return
    try:
        put_pictures(f"{caption}\n{(sample.think or '') if rules.use_think else ''}\n", ())
    except U1Error as problem:
        findings.add("stops", str(problem), MEND, sample.id)
        return
    if any(token in caption for token in SPECIAL_TOKENS.values()):
        findings.add("hurts", "the caption holds one of the model's special tokens", "take it out", sample.id)
    if rules.trigger and rules.trigger.lower() in caption.lower():
        what = f"the caption has the trigger {rules.trigger!r} already, and it is put before it once more"
        findings.add("hurts", what, "take it out of the caption, or leave style.trigger empty", sample.id)
    # No token is shorter than a byte: most captions need no counting.
    if rules.encode and len(caption.encode()) > LONGEST_TOKENS and len(rules.encode(caption)) > LONGEST_TOKENS:
        findings.add("hurts", f"the caption is over {LONGEST_TOKENS} tokens long", SHORTEN, sample.id)
    if not rules.encode and words > LONGEST_WORDS:
        findings.add("hurts", f"the caption is over {LONGEST_WORDS} words long", SHORTEN, sample.id)
    if words < FEWEST_WORDS and len(caption) < FEWEST_CHARACTERS:
        findings.add("note", f"the caption has fewer than {FEWEST_WORDS} words", "say what it shows", sample.id)


def _check_pictures(
    dataset: Dataset,
    pictures: PictureCache,
    rules: Rules,
    numbers: Sequence[int],
    findings: Findings,
    on_progress: Progress | None,
) -> None:
    prints: dict[str, Fingerprint] = {}
    framed: list[Frame] = []
    compared = {numbers[place] for place in spread(len(numbers), COMPARED)}
    for done, number in enumerate(numbers, 1):
        name = dataset[number].id
        pictures.expect(numbers[done - 1 : done + pictures.ahead])
        try:
            picture = pictures[number]
            if number in compared:
                prints[name] = fingerprint(picture)
            framed.append(rules.framing.frame(*dataset.size(number)))
            _check_frame(name, framed[-1], rules, findings)
        except U1Error as problem:
            findings.add("stops", str(problem).removeprefix(f"{dataset.place(number)}: "), MEND, name)
        if on_progress:
            on_progress(done, len(numbers))
    pictures.expect(())
    _check_size(framed, rules, findings)
    if len(numbers) < len(dataset):
        what = f"{len(numbers):,} of {len(dataset):,} pictures were looked at"
        findings.add("note", what, "`u1 data check --all` looks at each")
    names = list(prints)
    for alike in near_duplicates(list(prints.values())):
        first, *others = (names[number] for number in alike)
        findings.add("hurts", f"the picture looks like {first}", "keep one: what is seen twice counts twice", *others)


def _check_frame(name: str, frame: Frame, rules: Rules, findings: Findings) -> None:
    place = f"{name} ({frame.original[0]}x{frame.original[1]} to {frame.size[0]}x{frame.size[1]})"
    if frame.enlarged > 1 and rules.framing.upscale == "skip":
        what = "the picture is smaller than the size it would be trained at, and left out"
        findings.add("note", what, "find a larger one, or lower data.cap_max_pixels", place)
    elif frame.enlarged > 1:
        much = frame.enlarged > ENLARGED_MUCH
        what = "the picture is smaller than the size it is trained at, and enlarged"
        advice = "find a larger one, lower data.cap_max_pixels, or set data.upscale to shrink_bucket or skip"
        words = f"{what} more than {ENLARGED_MUCH:g} times" if much else what
        findings.add("hurts" if much else "note", words, advice, place)
    if frame.lost > LOST_MUCH:
        what = f"over {LOST_MUCH:.0%} of the picture is cut off to bring it to a ratio that the model knows"
        findings.add("hurts", what, "crop it yourself, or set data.snap_bucket to false", place)
    if max(frame.original) > RATIO_MUCH * min(frame.original):
        what = f"one side is over {RATIO_MUCH:g} times the other, which the model has not been trained on"
        findings.add("hurts", what, "crop it yourself", place)


def _check_size(frames: Sequence[Frame], rules: Rules, findings: Findings) -> None:
    largest = max((frame.size for frame in frames), key=math.prod, default=(0, 0))
    if rules.native_pixels and math.prod(largest) > TOO_MANY * rules.native_pixels:
        side = math.isqrt(rules.native_pixels)
        what = f"pictures are trained at up to {largest[0]}x{largest[1]}, and the model draws {side}x{side}"
        findings.add("hurts", what, f"set data.cap_max_pixels to {rules.native_pixels}; it is quicker, too")


def _is_stray_mask(path: Path, pictures: Collection[Path]) -> bool:
    return path.name.endswith(MASK_SUFFIX) and path.with_name(path.name.removesuffix(MASK_SUFFIX)) not in pictures


def _check_files(dataset: FolderDataset, rules: Rules, findings: Findings) -> None:
    samples = list(dataset)
    pictures = {sample.path.with_suffix("") for sample in samples}
    pictures |= {(dataset.source / name).with_suffix("") for name in dataset.problems}
    for path in sorted(path for path in dataset.source.rglob("*") if path.is_file()):
        name = path.relative_to(dataset.source).as_posix()
        if path.suffix.lower() in NOT_READ:
            findings.add("hurts", "a picture in a format that is not read", "save it as PNG or JPEG", name)
        elif _is_stray_mask(path, pictures) and dataset.whole:
            findings.add("note", "a mask without its picture", "name both alike", name)
        elif path.suffix.lower() == ".txt" and path.with_suffix("") not in pictures and dataset.whole:
            findings.add("note", "a text without a picture of that name", "name both alike", name)
    masked = [sample.id for sample in samples if sample.mask]
    if masked and rules.masks == "none":
        findings.add("note", "there is a mask, but data.masks is none", "set it to file to use it", *masked)
    if rules.masks == "file" and len(masked) < len(samples):
        bare = [sample.id for sample in samples if not sample.mask]
        findings.add("note", "has no mask, so the whole picture counts", "add NAME.mask.png, white what counts", *bare)
    for folder, times in sorted({(sample.id.rpartition("/")[0], sample.repeats) for sample in samples}):
        if times > REPEATS_MANY:
            what = f"the folder's name means that each of its pictures has {times} turns in an epoch"
            findings.add("hurts", what, "rename it, if the number means something else", folder)
