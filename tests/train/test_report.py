import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from u1_core.data.pictures import save_png
from u1_core.errors import U1Error
from u1_core.train.recipe import Recipe, Train
from u1_core.train.recipe_file import dump_recipe
from u1_core.train.report import write_report
from u1_core.train.run_log import read_run
from u1_core.train.validation import compare

STEPS = 60


def picture_record(step):
    return {
        "step": step,
        "loss": 1 / step,
        "x0_mse": 1 / step,
        "v_mse": 2 / step,
        "t": step / (STEPS + 1),
        "sample": f"{step % 3}.png",
        "bucket": "64x64" if step % 2 else "96x48",
        "dropped": "text" if step % 10 == 0 else "",
        "lr": 1e-4,
        "grad_norm": 0.5,
        "seconds": 0.2,
        "data_wait_s": 0.01,
        "memory_bytes": 3 * 2**30,
    }


def validation_record(step):
    base = torch.ones(8)
    share = asdict(compare(base * (1 - step / 200), base))
    edges = [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
    asked = {"x0": share, "v": share, "pictures": 2, "questions": 8}
    asked["ranges"] = [{"from": start, "to": end, **share} for start, end in edges]
    return {"event": "validation", "step": step, "held_out": asked, "training": asked, "gap": 1.5, "seconds": 2.0}


@pytest.fixture
def folder(tmp_path):
    """A run's folder as training leaves it."""
    run = tmp_path / "run"
    (run / "previews").mkdir(parents=True)
    recipe = Recipe(run_name="my & run", train=Train(steps=STEPS, cond_dropout_text=0.1))
    (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    files = {"a.safetensors": {"bytes": 9, "sha256": "ab" * 32}, "b.safetensors": {"bytes": 9, "sha256": None}}
    manifest = {"torch": "2.8", "pictures": {"a": {"x": 1}}, "model": {"kind": "u1", "files": files}, "plan": {"x": 1}}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    records = [validation_record(0)]
    for step in range(1, STEPS + 1):
        records.append(picture_record(step))
        if step % 20 == 0:
            records.append(validation_record(step))
    records.append({"event": "preview", "step": 40, "failed": "OutOfMemoryError: no room"})
    lines = [json.dumps(record) for record in records]
    (run / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 61, "lo', encoding="utf-8")
    for stem in ("base", "step_000020", "step_000040"):
        save_png(Image.new("RGB", (600, 400), "red"), run / "previews" / f"{stem}_1.png", {"prompt": "a <red> wall"})
    return run


class Reader(HTMLParser):
    """Checks that tags close in order, and collects texts and every address."""

    VOID = ("meta", "img", "line", "rect", "circle", "path", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.addresses, self.texts = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def test_it_holds_every_series_and_nothing_from_elsewhere(folder):
    path = write_report(folder)
    html = path.read_text(encoding="utf-8")
    page = Reader(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", html)
    assert all(address.startswith(("data:image/jpeg;base64,", "previews/")) for address in page.addresses)
    assert sum(address.startswith("data:") for address in page.addresses) == 3
    for title in (
        "x0-MSE on fixed pictures, t and noise",
        "By t: 0 is noise, 1 the picture",
        "x0-MSE",
        "v-MSE",
        "Learning rate",
        "Gradient norm",
        "Timesteps",
        "Dropout of the condition",
        "Sizes",
        "Seconds a step",
        "Memory in use at most",
        "Where the time went",
        "Recipe",
    ):
        assert title in page.texts, title
    assert html.count("<svg") == 9
    assert html.count('class="faint') == 4
    assert html.count('class="band') == 4
    assert "prefers-color-scheme:dark" in html
    assert path.stat().st_size < 200_000


def test_its_figures_are_those_of_the_log(folder):
    texts = Reader(write_report(folder).read_text(encoding="utf-8")).texts
    for expected in (
        "my & run",
        "60 of 60 steps · x0 loss, t uniform, lr 5e-05",
        "70.0 %",
        "+1.5",
        f"{sum(1 / step for step in range(55, 61)) / 6:.4g}",
        "0.20 s",
        "12 s",
        "3.0 GiB",
        "step 40: preview failed: OutOfMemoryError: no room",
        "a <red> wall",
        "without the LoRA",
        "step 40",
    ):
        assert expected in texts, expected
    place = texts.index("caption dropped (text)")
    assert texts[place + 1 : place + 4] == ["6", "10.0%", "10.0%"]
    place = texts.index("96x48")
    assert texts[place + 1 : place + 3] == ["30", "50.0%"]


def test_skipped_steps_and_returns_are_told_and_spoil_no_curve(folder):
    skipped = {**picture_record(61), "x0_mse": float("nan"), "loss": float("nan"), "skipped": "loss nan"}
    back = {"event": "rollback", "step": 40, "from_step": 61, "reason": "loss nan", "lr_scale": 0.5}
    log = folder / "log.jsonl"
    kept = log.read_text(encoding="utf-8").rpartition("\n")[0]
    log.write_text(f"{kept}\n{json.dumps(back)}\n{json.dumps(skipped)}\n", encoding="utf-8")
    html = write_report(folder).read_text(encoding="utf-8")
    texts = Reader(html).texts
    assert "step 61: went back to step 40 with the learning rate at 0.5 of the recipe's: loss nan" in texts
    assert "steps skipped: 1, the last at step 61: loss nan" in texts
    assert not re.search(r"\bnan\b", re.sub(r"loss nan", "", html))


def test_a_log_with_what_unicode_calls_an_end_of_line_and_a_last_line_cut_off_in_a_character(folder):
    log = folder / "log.jsonl"
    validation = {"event": "validation", "step": 60, "failed": "no picture\u2028at\u0085all"}
    whole = log.read_bytes().rpartition(b"\n")[0] + b"\n" + json.dumps(validation, ensure_ascii=False).encode()
    log.write_bytes(whole + b'\n{"step": 61, "sample": "\xe6')
    texts = Reader(write_report(folder).read_text(encoding="utf-8")).texts
    assert [text for text in texts if text.startswith("step 60: validation failed: no picture")]


def test_the_plan_and_shortages_are_told_with_what_was_measured(folder):
    plan = {"resident": 12, "slots": 3, "kept": {"input": 30, "all": 12}, "together": 1, "steps": 50}
    plan |= {"predicted_seconds": 0.5, "predicted_bytes": 8 * 2**30}
    records = [
        {"event": "plan", "step": 0, **plan},
        {"event": "out_of_memory", "step": 9, "message": "memory ran out in step 10"},
        {"event": "measured", "step": 60, **plan, "seconds": 0.55, "reserved_bytes": 7 * 2**30},
    ]
    log = folder / "log.jsonl"
    kept = log.read_text(encoding="utf-8").rpartition("\n")[0]
    log.write_text("\n".join([kept, *map(json.dumps, records)]) + "\n", encoding="utf-8")
    texts = Reader(write_report(folder).read_text(encoding="utf-8")).texts
    assert "memory ran out in step 10" in texts
    place = texts.index("The plan")
    assert texts[place + 1 : place + 10] == [
        "predicted", "measured", "a step", "0.50 s", "0.55 s", "memory reserved", "8.0 GiB", "7.0 GiB",
        "12 layers on the card, 3 slots for the others; of activations, 30 keep input, 12 keep all",
    ]  # fmt: skip


def test_model_files_are_told_by_their_hashes(folder):
    texts = Reader(write_report(folder).read_text(encoding="utf-8")).texts
    assert texts[texts.index("a.safetensors") + 1] == "SHA-256 abababababababab…"
    assert texts[texts.index("b.safetensors") + 1] == "not hashed"
    assert "plan x" not in texts


def test_memorising_is_pointed_out(folder):
    worse = validation_record(0)
    worse["step"] = 60
    log = folder / "log.jsonl"
    kept = log.read_text(encoding="utf-8").rpartition("\n")[0]
    log.write_text(f"{kept}\n{json.dumps(worse)}\n", encoding="utf-8")
    texts = Reader(write_report(folder).read_text(encoding="utf-8")).texts
    (told,) = [text for text in texts if text.startswith("held-out pictures were best")]
    assert told.startswith("held-out pictures were best at step 60 (70.0 %) and have been getting worse: what came")


def test_steps_done_again_after_going_back_count_once(folder):
    again = [json.dumps({**picture_record(step), "x0_mse": 7.0}) for step in (50, 51)]
    log = folder / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8").rpartition("\n")[0] + "\n" + "\n".join(again), encoding="utf-8")
    run = read_run(folder)
    assert [record["step"] for record in run.steps] == list(range(1, 52))
    assert run.curve("x0_mse")[-3:] == [(49, 1 / 49), (50, 7.0), (51, 7.0)]
    assert [record["step"] for record in run.validations] == [0, 20, 40]


def test_a_step_of_several_pictures_is_one_point(folder):
    record = picture_record(61)
    lines = [json.dumps({**record, "x0_mse": value}) for value in (1.0, 3.0)]
    log = folder / "log.jsonl"
    log.write_text(log.read_text(encoding="utf-8").rpartition("\n")[0] + "\n" + "\n".join(lines), encoding="utf-8")
    run = read_run(folder)
    assert run.curve("x0_mse")[-1] == (61, 2.0)
    assert len(run.pictures) == 62


def test_a_run_that_has_only_begun_has_a_report(folder):
    (folder / "log.jsonl").unlink()
    page = Reader(write_report(folder).read_text(encoding="utf-8"))
    assert "0 of 60 steps · x0 loss, t uniform, lr 5e-05" in page.texts


def test_what_is_no_run_is_refused(tmp_path, folder):
    with pytest.raises(U1Error, match="is no run: there is no recipe"):
        write_report(tmp_path)
    (folder / "log.jsonl").write_text('{"step": 1\n{"step": 2}\n', encoding="utf-8")
    with pytest.raises(U1Error, match=r"log\.jsonl line 1: is not JSON"):
        write_report(folder)
