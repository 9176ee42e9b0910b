"""Against a stand-in for the hub: these tests never touch the network."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub as hub
import pytest
from huggingface_hub import errors

from u1_core.cli.main import main
from u1_core.errors import U1Error
from u1_core.weights.download import SOURCE_FILE, download, resolve_model, source_of

ID, COMMIT = "owner/Tiny-U1", "c" * 40
FILES = [
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "LICENSE",
    "README.md",
    "modeling_neo.py",
    "pytorch_model.bin",
    "extra/adapter.safetensors",
]
WANTED = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE"]


class FakeHub:
    """Answers for one model, and keeps what it was asked."""

    def __init__(self, model: Path, cache: Path) -> None:
        self.model, self.cache = model, cache
        self.files, self.problem, self.asked = FILES, None, []

    def model_info(self, repo_id, revision=None):
        self.asked.append(("model_info", repo_id, {"revision": revision}))
        if self.problem:
            raise self.problem
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, repo_id, **options):
        self.asked.append(("snapshot_download", repo_id, options))
        storage = self.cache / "models--owner--Tiny-U1"
        folder = options.get("local_dir") or storage / "snapshots" / COMMIT
        shutil.copytree(self.model, folder, dirs_exist_ok=True)
        if "local_dir" not in options:
            (storage / "refs").mkdir(exist_ok=True)
            (storage / "refs" / (options["revision"] or "main")).write_text(COMMIT)
        return str(folder)


@pytest.fixture
def fake(models, tmp_path, monkeypatch) -> FakeHub:
    fake = FakeHub(models["u1"], tmp_path / "cache")
    look_up = hub.try_to_load_from_cache
    monkeypatch.setattr(hub, "model_info", fake.model_info)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", lambda *args, **options: look_up(*args, cache_dir=fake.cache, **options)
    )
    monkeypatch.delenv("U1_MODELS", raising=False)
    return fake


def test_only_what_is_needed_is_fetched_into_a_folder_of_its_own(fake, tmp_path):
    to = tmp_path / "models" / "tiny"
    assert download(ID, "v1", to) == to
    assert fake.asked == [
        ("model_info", ID, {"revision": "v1"}),
        ("snapshot_download", ID, {"allow_patterns": WANTED, "revision": COMMIT, "local_dir": to}),
    ]
    assert json.loads((to / SOURCE_FILE).read_text()) == {"id": ID, "revision": COMMIT}
    assert download(ID, "v1", to) == to


def test_bytes_are_told_as_they_come_and_whoever_is_told_can_end_it(fake, tmp_path, monkeypatch):
    fetch, told = hub.snapshot_download, []

    def with_bars(repo_id, tqdm_class, **options):
        with tqdm_class(total=2, unit="it") as files, tqdm_class(total=100, unit="B") as bar:
            for n in (60, 40):
                files.update()
                bar.update(n)
        return fetch(repo_id, **options)

    monkeypatch.setattr(hub, "snapshot_download", with_bars)
    download(ID, to=tmp_path / "one", progress=lambda *now: told.append(now))
    assert told == [(60, 100), (100, 100)]

    def cancel(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve_model("owner/Absent", True, cancel)


def test_the_shared_cache_keeps_the_branchs_name(fake):
    folder = download(ID)
    assert fake.asked[1] == ("snapshot_download", ID, {"allow_patterns": WANTED, "revision": None})
    assert folder.name == COMMIT
    assert source_of(folder) == {"id": ID, "revision": COMMIT}


def test_a_folder_with_other_things_is_not_filled(fake, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(U1Error, match="is not empty; choose another folder with --to"):
        download(ID, to=tmp_path)
    with pytest.raises(U1Error, match="is a file; --to needs a folder"):
        download(ID, to=tmp_path / "mine.txt")
    download(ID, to=tmp_path / "tiny")
    with pytest.raises(U1Error, match="tiny: holds owner/Tiny-U1; choose another folder"):
        download("other/Model", to=tmp_path / "tiny")


def test_repositories_that_hold_no_whole_model(fake):
    fake.files = ["config.json", "pytorch_model.bin"]
    with pytest.raises(U1Error, match=r"no \.safetensors files on the hub under this id, only pytorch_model\.bin"):
        download(ID)
    fake.files = ["lora.safetensors"]
    with pytest.raises(U1Error, match=r"no config\.json on the hub under this id"):
        download(ID)
    assert {name for name, *_ in fake.asked} == {"model_info"}


def test_what_arrives_is_checked(fake, tmp_path, models):
    fake.model = Path(shutil.copytree(models["u1"], tmp_path / "cut"))
    whole = (fake.model / "model.safetensors").read_bytes()
    (fake.model / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(U1Error, match=r"model\.safetensors is truncated"):
        download(ID)


def hub_problem(name: str, text: str) -> Exception:
    """One of the hub's own errors, whose constructors differ between its versions."""
    kind = getattr(errors, name)
    problem = kind.__new__(kind)
    problem.args = (text,)
    return problem


class UnheardOf(Exception):
    """A network library's error that shares no base with the rest."""


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (hub_problem("GatedRepoError", "403"), "accept terms first"),
        (hub_problem("RepositoryNotFoundError", "404"), "there is no such model on the hub"),
        (hub_problem("RevisionNotFoundError", "404"), "there is no revision 'v9' of it on the hub"),
        (hub_problem("OfflineModeIsEnabled", "offline"), "while HF_HUB_OFFLINE is set"),
        (hub_problem("HFValidationError", "bad id"), r"as a hub id it is not valid \(bad id\)"),
        (ConnectionError("name not\nknown"), r"the hub did not give it \(name not known\); run the same command again"),
        (UnheardOf(), r"the hub did not give it \(UnheardOf\)"),
    ],
)
def test_the_hubs_errors_become_one_line(fake, problem, message):
    fake.problem = problem
    with pytest.raises(U1Error, match=message) as raised:
        download(ID, "v9")
    assert str(raised.value).startswith(f"{ID}: ")
    assert "\n" not in str(raised.value)


def test_a_download_that_breaks_off_can_go_on(fake, tmp_path, monkeypatch):
    def break_off(repo_id, **options):
        (options["local_dir"] / "model.safetensors.part").write_bytes(b"half")
        raise TimeoutError("timed out")

    with monkeypatch.context() as patch:
        patch.setattr(hub, "snapshot_download", break_off)
        with pytest.raises(U1Error, match="timed out"):
            download(ID, to=tmp_path / "tiny")
    assert download(ID, to=tmp_path / "tiny") == tmp_path / "tiny"


def test_models_are_found_on_this_machine_and_never_fetched_unasked(fake, tmp_path, monkeypatch):
    assert resolve_model(str(fake.model)) == fake.model
    with pytest.raises(U1Error, match=f"run `u1 download {ID}` to fetch it"):
        resolve_model(ID)
    with pytest.raises(U1Error, match=f"run `u1 download {ID} --revision v1` to fetch it"):
        resolve_model(f"{ID}@v1")
    assert fake.asked == []
    in_cache = download(ID)
    assert resolve_model(ID) == resolve_model(f"{ID}@{COMMIT}") == in_cache
    download(ID, to=tmp_path / "Tiny-U1")
    monkeypatch.setenv("U1_MODELS", str(tmp_path))
    assert resolve_model(ID) == resolve_model(f"{ID}@{COMMIT}") == tmp_path / "Tiny-U1"
    with pytest.raises(U1Error, match="u1 download other/Tiny-U1"):
        resolve_model("other/Tiny-U1")


def test_a_download_is_made_when_asked_for(fake):
    assert resolve_model(f"{ID}@v1", allow_download=True).name == COMMIT
    assert fake.asked[0] == ("model_info", ID, {"revision": "v1"})
    assert resolve_model(f"{ID}@v1").name == COMMIT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no/such/folder", "there is no such folder or file, and it is neither nano nor a hub id"),
        ("model.safetensors", "there is no such folder or file, and it is neither nano nor a hub id"),
        ("a--b/c", "there is no such folder here, and as a hub id it is not valid"),
    ],
)
def test_what_is_neither_path_nor_id(fake, text, message):
    with pytest.raises(U1Error, match=message):
        resolve_model(text)


def test_the_command_line_says_what_it_got(fake, tmp_path, capsys):
    assert main(["download", ID, "--to", str(tmp_path / "tiny")]) == 0
    assert capsys.readouterr().out == f"{ID} at {COMMIT}: u1, 1 MB in {tmp_path / 'tiny'}\n"
    fake.problem = OSError("no network")
    assert main(["download", ID]) == 2
    assert capsys.readouterr().err.startswith(f"error: {ID}: the hub did not give it (no network)")
