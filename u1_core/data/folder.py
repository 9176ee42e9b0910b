"""A folder of pictures with same-name .txt captions, checked whole before anything is trained on it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from u1_core.errors import U1Error

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SHOWN_PROBLEMS = 8

_THINK_LINE = re.compile(r"^\s*-{3,}\s*think\s*-{3,}\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """A picture and what is said of it."""

    id: str
    """The picture's path inside the folder, with forward slashes."""
    path: Path
    caption: str
    think: str | None = None
    """The reasoning after the caption's `---think---` line."""


def read_folder(folder: Path, limit: int | None = None) -> tuple[list[Sample], dict[str, str]]:
    """The folder's samples by name (the first `limit` of them), subfolders included, and what is wrong with the rest.

    The second value is picture id -> problem, for `refuse_problems` to report with those that decoding finds. Names
    that begin with a dot are passed over. Raises U1Error if there is no such folder or no picture in it.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise U1Error(f"{folder}: {what}; data.data_dir is to be a folder of pictures with .txt captions")
    pictures = sorted(_picture_ids(folder).items())[:limit]
    if not pictures:
        raise U1Error(f"{folder}: holds no pictures ({' '.join(PICTURE_SUFFIXES)})")
    samples, problems = [], {}
    for name, path in pictures:
        try:
            caption, think = _read_caption(path.with_suffix(".txt"))
            samples.append(Sample(name, path, caption, think))
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


def _picture_ids(folder: Path) -> dict[str, Path]:
    paths = {path.relative_to(folder): path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES}
    return {
        inner.as_posix(): path
        for inner, path in paths.items()
        if path.is_file() and not any(part.startswith(".") for part in inner.parts)
    }


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
