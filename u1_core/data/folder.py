"""A folder of pictures with same-name .txt captions, checked whole before anything is trained on it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from u1_core.errors import U1Error

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MASK_SUFFIX = ".mask.png"
SHOWN_PROBLEMS = 8

_REPEATS = re.compile(r"([1-9]\d*)_.")
_THINK_LINE = re.compile(r"^\s*-{3,}\s*think\s*-{3,}\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """A picture and what is said of it."""

    id: str
    """The picture's path inside the folder, with forward slashes, ? for what is no text; of a row, its sample_id."""
    path: Path
    """The picture's file; of a table's row, the table's."""
    caption: str
    think: str | None = None
    """The reasoning after the caption's `---think---` line."""
    repeats: int = 1
    """Turns that it has in an epoch: the N of the nearest folder above it that is named N_something."""
    mask: Path | None = None
    """The file NAME.mask.png beside it, if there is one."""


def read_folder(folder: Path, limit: int | None = None) -> tuple[list[Sample], dict[str, str]]:
    """The folder's samples by name (the first `limit` of them), subfolders included, and what is wrong with the rest.

    The second value is picture id -> problem, for `refuse_problems` to report with those that decoding finds. Names
    that begin with a dot are passed over. Raises U1Error if there is no such folder or no picture in it.
    """
    if not folder.is_dir():
        missing = "there is no such folder" + f" in {Path.cwd()}" * (not folder.is_absolute())
        what = "is a file, not a folder" if folder.exists() else missing
        raise U1Error(f"{folder}: {what}; data.data_dir is to be a folder of pictures with .txt captions")
    pictures = sorted(picture_files(folder).items())[:limit]
    if not pictures:
        raise U1Error(f"{folder}: holds no pictures ({' '.join(PICTURE_SUFFIXES)})")
    samples, problems = [], {}
    for name, path in pictures:
        try:
            caption, think = _read_caption(path.with_suffix(".txt"))
            samples.append(Sample(name, path, caption, think, repeats_of(name), _mask_of(path)))
        except U1Error as problem:
            problems[name] = str(problem)
    return samples, problems


def refuse_problems(folder: Path, problems: Mapping[str, str]) -> None:
    """Raise one U1Error that names every problem, or the first few and how many more; do nothing if there is none."""
    if not problems:
        return
    shown = [f"{name} ({problem})" for name, problem in sorted(problems.items())[:SHOWN_PROBLEMS]]
    more = len(problems) - len(shown)
    pictures = "1 picture" if len(problems) == 1 else f"{len(problems)} pictures"
    raise U1Error(
        f"{folder}: cannot train on {pictures}: {', '.join(shown)}{f', and {more} more' * bool(more)}; "
        "mend them or move them away"
    )


def split_caption(text: str) -> tuple[str, str | None]:
    """A caption file's text -> (caption, think): what stands before and after its first `---think---` line."""
    caption, *rest = _THINK_LINE.split(text, maxsplit=1)
    think = rest[0].strip() if rest else ""
    return caption.strip(), think or None


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in the folder or in one within it."""
    return any(_is_picture(path) and not is_hidden(path, folder) for path in folder.rglob("*"))


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether the path, or a folder on the way to it from `folder`, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def picture_files(folder: Path) -> dict[str, Path]:
    """Id -> picture in the folder and the folders in it; masks, and names that begin with a dot, are passed over."""
    return {
        _as_text(path.relative_to(folder).as_posix()): path
        for path in folder.rglob("*")
        if _is_picture(path) and path.is_file() and not is_hidden(path, folder)
    }


def repeats_of(name: str) -> int:
    """Turns in an epoch of the picture with this id: `10_ink/a.png` has ten, as other trainers count."""
    numbers = [int(match[1]) for part in name.split("/")[:-1] if (match := _REPEATS.match(part))]
    return numbers[-1] if numbers else 1


def _as_text(name: str) -> str:
    """A file's name without line breaks and bytes that are no character, which would break a log or a message."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "?", name)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.lower().endswith(MASK_SUFFIX)


def _mask_of(path: Path) -> Path | None:
    mask = path.with_name(path.stem + MASK_SUFFIX)
    return mask if mask.is_file() else None


def _read_caption(path: Path) -> tuple[str, str | None]:
    """(caption, think). Raises U1Error with a few words for a list of problems."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise U1Error(f"has no caption {path.name}") from None
    except UnicodeDecodeError:
        raise U1Error(f"{path.name} is not UTF-8 text") from None
    except OSError as problem:
        raise U1Error(f"{path.name} cannot be read: {problem.strerror or problem}") from None
    caption, think = split_caption(text)
    if not caption:
        raise U1Error(f"{path.name} is empty")
    return caption, think
