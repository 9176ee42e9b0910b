"""Fetching a model from the Hugging Face hub when asked to, and finding one that is already on this machine."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from u1_core import nano
from u1_core.errors import U1Error, nearest

SOURCE_FILE = "u1_source.json"
"""Beside the weights: which hub id and which revision they are."""
MODELS_VARIABLE = "U1_MODELS"
"""Environment variable naming a folder of model folders, where a hub id's last part is looked up too."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all as far as they are known)."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_WANTED = re.compile(
    r"[^/]+\.safetensors|model\.safetensors\.index\.json|(generation_)?config\.json|(LICENSE|NOTICE)[^/]*"
    r"|tokenizer(_config)?\.json|vocab\.json|merges\.txt|added_tokens\.json|special_tokens_map\.json"
    r"|chat_template\.(json|jinja)"
)


def download(
    repo_id: str, revision: str | None = None, to: Path | None = None, progress: Progress | None = None
) -> Path:
    """Fetch a model's weights, config, tokenizer and licence; never pickles or code. -> its folder, checked.

    An interrupted download goes on where it stopped. Without `to` it goes to the hub's shared cache. The id and the
    commit that `revision` stood for are written to u1_source.json. What `progress` raises ends it. Raises U1Error if
    the hub cannot be reached, will not give the files, or has no U1 model under that id.
    """
    import huggingface_hub as hub

    from u1_core.weights.snapshot import Snapshot  # imports PyTorch, which finding a model needs not wait for

    if to is not None:
        _refuse_foreign_folder(to, repo_id)
    # The hub's errors share no base class from one of its versions to the next, nor does the network library's.
    try:
        info = hub.model_info(repo_id, revision=revision)
    except Exception as problem:
        raise _hub_error(repo_id, revision, problem) from problem
    names = _wanted_files(repo_id, [file.rfilename for file in info.siblings or ()])
    if to is not None:
        _record_source(to, repo_id, info.sha)
    try:
        # In the cache the branch's name is kept as a pointer to the commit; a folder of its own has no such pointers.
        asked = {"revision": revision} if to is None else {"revision": info.sha, "local_dir": to}
        asked |= {"tqdm_class": _bar_that_tells(progress)} if progress else {}
        folder = Path(hub.snapshot_download(repo_id, allow_patterns=names, **asked))
    except Exception as problem:
        raise _hub_error(repo_id, revision, problem) from problem
    if to is None:
        _record_source(folder, repo_id, folder.name)
    Snapshot.open(folder)
    return folder


def resolve_model(text: str, allow_download: bool = False, progress: Progress | None = None) -> Path:
    """A model given as a path, as "nano" (the one that ships with the package), or as a hub id (`owner/name`,
    `owner/name@revision`) -> its path on this machine.

    Looks in the folder that U1_MODELS names and in the hub's cache. Nothing is fetched unless `allow_download`.
    Raises U1Error saying what to do.
    """
    path = Path(text).expanduser()
    if path.exists():
        return path
    if text == "nano":
        return nano.MODEL
    if not _HUB_ID.fullmatch(text):
        known = nearest(text, ["nano"])
        raise U1Error(
            f"{text}: there is no such folder or file, and it is neither nano nor a hub id (owner/name){known}"
        )
    repo_id, _, revision = text.partition("@")
    found = _in_models_folder(repo_id, revision) or _in_hub_cache(repo_id, revision)
    if found:
        return found
    if allow_download:
        return download(repo_id, revision or None, progress=progress)
    command = f"u1 download {repo_id}" + f" --revision {revision}" * bool(revision)
    raise U1Error(f"{text}: there is no such folder here and it has not been downloaded; run `{command}` to fetch it")


def _bar_that_tells(progress: Progress) -> type:
    """The hub library's bar, which also tells how many bytes there are by now."""
    from tqdm.auto import tqdm

    class TellingBar(tqdm):
        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            if self.unit == "B" and self.total:  # others count files
                progress(int(self.n), int(self.total))
            return drawn

    return TellingBar


def source_of(folder: Path) -> dict[str, str]:
    """What u1_source.json beside some weights says: `id` and `revision`; empty if there is none."""
    try:
        source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        return {"id": str(source["id"]), "revision": str(source["revision"])}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as problem:
        raise U1Error(f"{folder / SOURCE_FILE}: cannot be read ({problem!r}); delete it") from None


def _wanted_files(repo_id: str, names: list[str]) -> list[str]:
    from u1_core.weights.snapshot import PICKLES

    wanted = [name for name in names if _WANTED.fullmatch(name)]
    if not any(name.endswith(".safetensors") for name in wanted):
        pickles = [name for name in names if name.endswith(PICKLES)]
        only = f", only {pickles[0]} and the like, which can run any program when loaded" if pickles else ""
        raise U1Error(f"{repo_id}: there are no .safetensors files on the hub under this id{only}")
    if "config.json" not in wanted:
        raise U1Error(f"{repo_id}: there is no config.json on the hub under this id, so this is not a whole model")
    return wanted


def _refuse_foreign_folder(folder: Path, repo_id: str) -> None:
    """A folder with other things in it is not ours to fill."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise U1Error(f"{folder}: is a file; --to needs a folder")
    held = source_of(folder).get("id")
    if held not in (None, repo_id) or (held is None and any(folder.iterdir())):
        what = f"holds {held}" if held else "is not empty"
        raise U1Error(f"{folder}: {what}; choose another folder with --to")


def _record_source(folder: Path, repo_id: str, revision: str) -> None:
    from u1_core.weights.write import replacing

    with replacing(folder / SOURCE_FILE, overwrite=True) as file:
        file.write(json.dumps({"id": repo_id, "revision": revision}, indent=1).encode())


def _in_models_folder(repo_id: str, revision: str) -> Path | None:
    models = os.environ.get(MODELS_VARIABLE)
    folder = Path(models).expanduser() / repo_id.split("/")[1] if models else None
    if folder is None or not (folder / "config.json").is_file():
        return None
    source = source_of(folder)
    right_id = source.get("id", repo_id) == repo_id
    return folder if right_id and (not revision or source.get("revision") == revision) else None


def _in_hub_cache(repo_id: str, revision: str) -> Path | None:
    import huggingface_hub as hub
    from huggingface_hub.errors import HFValidationError

    try:
        config = hub.try_to_load_from_cache(repo_id, "config.json", revision=revision or None)
    except HFValidationError as problem:
        raise _hub_error(repo_id, revision, problem) from None
    return Path(config).parent if isinstance(config, str) else None


def _hub_error(repo_id: str, revision: str | None, problem: Exception) -> U1Error:
    """One line for whatever the hub's client raised."""
    from huggingface_hub import errors

    if isinstance(problem, errors.GatedRepoError):
        text = "its owner asks you to accept terms first: do so on its page on the hub, then run `hf auth login`"
    elif isinstance(problem, errors.RevisionNotFoundError):
        text = f"there is no revision {revision!r} of it on the hub"
    elif isinstance(problem, errors.RepositoryNotFoundError):
        text = "there is no such model on the hub, or it is private and needs `hf auth login`; check the spelling"
    elif isinstance(problem, errors.HFValidationError):
        text = f"there is no such folder here, and as a hub id it is not valid ({problem})"
    elif isinstance(problem, errors.OfflineModeIsEnabled):
        text = "the hub cannot be asked while HF_HUB_OFFLINE is set"
    else:
        reason = " ".join(f"{problem}".split()) or type(problem).__name__
        text = f"the hub did not give it ({reason[:300]}); run the same command again, it goes on where it stopped"
    return U1Error(f"{repo_id}: {text}")
