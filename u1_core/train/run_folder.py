"""The folder of a run: recipe, log, checkpoints, and at the end the results. Nothing in it is overwritten."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from u1_core.errors import U1Error
from u1_core.lora.adapter import Adapter
from u1_core.lora.files import FULL_FILE, write_full, write_lora
from u1_core.train.checkpoint import state_files
from u1_core.train.previews import newest_preview
from u1_core.train.recipe import Recipe
from u1_core.train.recipe_file import dump_recipe
from u1_core.train.results import base_hashes, check_saved, result_metadata
from u1_core.weights.write import replacing


@dataclass(frozen=True)
class Saved:
    """The files of one state of the weights: the LoRA, the tensors trained whole, or both."""

    lora: Path | None
    full: Path | None

    @property
    def loadable(self) -> Path:
        """The file to give to `--lora`; it brings the other."""
        return self.lora or self.full


class RunFolder:
    """`OUT_DIR/RUN_NAME`. Make one with `create`."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self._recipe = path, recipe
        self.checkpoints = checkpoints_path(recipe, path)
        self.previews = path / "previews"
        self.log_path = path / "log.jsonl"
        self.board = path / "tensorboard"

    @classmethod
    def create(cls, recipe: Recipe) -> "RunFolder":
        """Make the folder and put the recipe into it. Raises U1Error if there is one of that name already."""
        path = free_run_path(recipe)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            free_run_path(recipe)
        except OSError as problem:
            raise U1Error(f"{path}: cannot be made ({problem.strerror or problem})") from None
        folder = cls(path, recipe)
        try:
            folder.keep_recipe()
        except U1Error:
            path.rmdir()
            raise
        return folder

    @classmethod
    def reopen(cls, recipe: Recipe) -> "RunFolder":
        """The folder of a run that is to go on. Raises U1Error if there is none."""
        path = run_path(recipe)
        if not (path / "recipe.yaml").is_file():
            raise U1Error(f"{path}: there is no run to resume; leave out --resume to begin one")
        return cls(path, recipe)

    def keep_recipe(self) -> None:
        """Put the recipe into the folder, in place of the one that an earlier start of the run had. Raises U1Error."""
        with replacing(self.path / "recipe.yaml", overwrite=True) as file:
            file.write(dump_recipe(self._recipe).encode("utf-8"))

    def save_checkpoint(self, adapter: Adapter, step: int) -> Saved:
        """The weights after `step` steps, as checkpoints/step_000600.safetensors and .full.safetensors."""
        # A file of this step is what a run left that was cut off before its state was written: the same weights.
        return self._save(self.checkpoints / f"step_{step:06}", adapter, step, overwrite=True)

    def save_results(self, adapter: Adapter, step: int, pictures: int) -> Saved:
        """The finished LoRA, trained on so many pictures, as RUN_NAME.safetensors and .full.safetensors.

        Both are read back and compared. Raises U1Error if they differ.
        """
        base, preview = Path(self._recipe.model or "").name, newest_preview(self.previews, self._recipe.previews.every)
        hashes = base_hashes(self.path / "manifest.json")
        about = result_metadata(self._recipe, step, pictures, base, hashes, preview)
        # Only a run that was cut off while it wrote its results comes here with any: the same.
        saved = self._save(self.path / self._recipe.run_name, adapter, step, about, overwrite=True)
        check_saved(saved.loadable, adapter)
        return saved

    def _save(
        self,
        stem: Path,
        adapter: Adapter,
        step: int,
        about: Mapping[str, str] = MappingProxyType({}),
        overwrite: bool = False,
    ) -> Saved:
        metadata = {**about, "u1.step": str(step), "u1.recipe": dump_recipe(without_paths(self._recipe))}
        if self._recipe.style.trigger:
            metadata["modelspec.trigger_phrase"] = self._recipe.style.trigger
        lora = full = None
        if adapter.full:
            full = stem.with_name(f"{stem.name}.full.safetensors")
            (kind,) = adapter.kinds
            write_full(full, adapter.full, kind, metadata, overwrite)
            metadata[FULL_FILE] = full.name
        if adapter.modules:
            lora = stem.with_name(f"{stem.name}.safetensors")
            write_lora(lora, adapter, metadata, overwrite)
        return Saved(lora, full)


def run_path(recipe: Recipe) -> Path:
    return Path(recipe.runtime.out_dir).expanduser() / recipe.run_name


def checkpoints_path(recipe: Recipe, folder: Path) -> Path:
    """Where a run's checkpoints are: in its own folder, or where the recipe wants them."""
    chosen = recipe.train.checkpoint_dir
    return Path(chosen).expanduser() if chosen else folder / "checkpoints"


def free_run_path(recipe: Recipe) -> Path:
    """Where the run's folder is to be. Raises U1Error if something is there, or checkpoints are where its own are to
    go: a run is never overwritten."""
    path = run_path(recipe)
    if path.exists():
        raise U1Error(
            f"{path}: there is a run of this name already; choose another run_name (--name) or folder (--out), "
            "or go on with it (--resume)"
        )
    if held := state_files(checkpoints_path(recipe, path)):
        raise U1Error(
            f"train.checkpoint_dir {held[0].parent}: has checkpoints of another run already ({held[0].name}); choose "
            "another"
        )
    return path


def without_paths(recipe: Recipe) -> Recipe:
    """What `recipe` says of the training and nothing of this machine, to go into files that people pass on.

    What has no effect on what is learned is as if it had not been set.
    """
    upstream = recipe.runtime.upstream_lora_path
    plain = _with_free_defaults(recipe)
    sections = {one.name: _with_free_defaults(getattr(recipe, one.name)) for one in fields(recipe) if not one.metadata}
    sections["runtime"] = replace(sections["runtime"], upstream_lora_path=upstream and Path(upstream).name)
    return replace(plain, **sections)


def _with_free_defaults(section: Any) -> Any:
    return replace(section, **{one.name: one.default for one in fields(section) if one.metadata.get("free")})
