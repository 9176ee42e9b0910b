"""The data room as training uses it: what a set lies in, workers, repeats, masks, and what a large one holds."""

import json
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from u1_core.data import picture_cache
from u1_core.data.dataset import open_dataset
from u1_core.data.framing import Framing
from u1_core.data.pack import pack
from u1_core.data.picture_cache import training_pictures
from u1_core.jobs import Job
from u1_core.model.views import KVChunk, PrefixKV
from u1_core.prefix.store import PrefixStore, Room
from u1_core.prefix.units import PromptSet
from u1_core.text.sequence import Span, TokenSequence
from u1_core.train.loop import train
from u1_core.train.order import Order
from u1_core.train.prefixes import CaptionPrefixes
from u1_core.train.prepare import prepare
from u1_core.train.recipe import Train
from u1_core.train.rng import BLOCK, WINDOW
from u1_core.train.turn import MicroBatch, TrainingSet, draw_turn


def with_data(recipe, **settings):
    return replace(recipe, data=replace(recipe.data, **settings))


def elsewhere(recipe, name):
    return replace(recipe, runtime=replace(recipe.runtime, out_dir=f"{recipe.runtime.out_dir}/{name}"))


def results(job):
    assert (job.state, job.error) == ("finished", None)
    return {path.name: path.read_bytes() for path in job.result.folder.glob("*.safetensors")}


def test_workers_change_nothing(session, recipe, run):
    """Nor does what memory keeps: without a budget every picture is decoded anew."""
    bytes_of = {}
    for workers in (0, 2, 4):
        settings = with_data(elsewhere(recipe, str(workers)), workers=workers, cache_mb=0)
        bytes_of[workers] = results(run(session, settings))
    assert bytes_of[0] == bytes_of[2] == bytes_of[4]
    assert len(bytes_of[0]) == 2


@pytest.mark.parametrize(("workers", "decode_s", "waits"), [(2, 0.03, False), (0, 0.2, True)])
def test_workers_decode_while_a_step_is_computed(session, recipe, monkeypatch, workers, decode_s, waits):
    """Two workers keep up with steps of 30 ms and more; without any, no step is shorter than a picture takes."""
    plain = picture_cache.decode_picture

    def slow(*source):
        time.sleep(decode_s)
        return plain(*source)

    monkeypatch.setattr(picture_cache, "decode_picture", slow)
    recipe = with_data(replace(recipe, train=replace(recipe.train, steps=20)), workers=workers, cache_mb=0)
    job = Job(lambda job: train(job, session, recipe))
    job.subscribe(lambda event: time.sleep(0.03) if event.kind == "step" else None)
    assert job.start().wait(60)
    log = (job.result.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in log if '"event"' not in line]
    waited = sorted(record["data_wait_s"] for record in records)
    assert len(waited) == 20
    if waits:
        # The first picture was waited for from its beginning, the others beside the step before.
        assert records[0]["data_wait_s"] >= decode_s
        assert min(record["seconds"] for record in records) >= decode_s
    else:
        assert waited[len(waited) // 2] < 0.003


def test_a_parquet_trains_to_the_same_weights_as_the_folder_it_was_made_of(session, recipe, run, tmp_path):
    path = tmp_path / "packed.parquet"
    pack(open_dataset(Path(recipe.data.data_dir)), path)
    loras = []
    for source in (recipe.data.data_dir, str(path)):
        settings = with_data(elsewhere(recipe, Path(source).stem), data_dir=source, use_think_labels=True)
        outcome = run(session, settings).result
        loras.append(outcome.saved.lora.read_bytes()[8:])
    header = [len(lora) for lora in loras]
    # The recipe in the header names no path, so the files are alike to the last byte.
    assert header[0] == header[1]
    assert loras[0] == loras[1]


def test_repeats_are_turns(session, recipe):
    folder = Path(recipe.data.data_dir)
    (folder / "3_more").mkdir()
    for suffix in (".png", ".txt"):
        (folder / f"0{suffix}").rename(folder / "3_more" / f"0{suffix}")
    trainer = prepare(Job(print), session, recipe)
    samples = [draw_turn(trainer.config, recipe.train, trainer.data, draw).sample for draw in range(14)]
    assert Counter(samples[:7]) == {"3_more/0.png": 3, **{f"{i}.png": 1 for i in range(1, 5)}}
    assert Counter(samples) == {"3_more/0.png": 6, **{f"{i}.png": 2 for i in range(1, 5)}}


def test_small_pictures_can_be_left_out_or_trained_small(session, recipe):
    Image.new("RGB", (20, 16), "teal").save(Path(recipe.data.data_dir) / "1.png")
    trainer = prepare(Job(print), session, with_data(recipe, upscale="skip"))
    turns = [draw_turn(trainer.config, recipe.train, trainer.data, draw) for draw in range(8)]
    assert {turn.sample for turn in turns} == {"0.png", "2.png", "3.png", "4.png"}
    trainer = prepare(Job(print), session, with_data(recipe, upscale="shrink_bucket"))
    turns = [draw_turn(trainer.config, recipe.train, trainer.data, draw) for draw in range(5)]
    assert {turn.bucket for turn in turns if turn.sample == "1.png"} == {"16x16"}


def test_a_mask_weighs_the_loss(session, recipe):
    folder = Path(recipe.data.data_dir)
    for index in range(5):
        with Image.open(folder / f"{index}.png") as image:
            mask = np.zeros((image.height, image.width), dtype=np.uint8)
            mask[:, : image.width // 2] = 255
        Image.fromarray(mask).save(folder / f"{index}.mask.png")
    trainer = prepare(Job(print), session, with_data(recipe, masks="file"))
    turn = draw_turn(trainer.config, recipe.train, trainer.data, 0)
    batch = MicroBatch.of([turn]).to(torch.device("cpu"), [trainer.data.prefix_of(turn)])
    assert batch.weights.shape == (1, *turn.picture.shape[2:])
    assert (batch.weights.min(), batch.weights.max()) == (0, 1)
    x_pred = trainer.predict(batch).detach()
    errors = (x_pred - batch.x0).square().mean(1)
    expected = (errors * batch.weights).sum() / batch.weights.sum()
    (record,) = trainer.step(1)
    assert record["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert record["x0_mse"] == pytest.approx(errors.mean().item(), rel=1e-5)
    assert abs(record["loss"] - record["x0_mse"]) > 1e-4


def test_findings_are_told_before_the_first_step(session, recipe, run):
    (Path(recipe.data.data_dir) / "ghost.heic").write_bytes(b"x")
    job = run(session, recipe)
    (told,) = [event.data["findings"] for event in job.events() if event.kind == "checked"]
    assert "ghost.heic" in {name for finding in told for name in finding["where"]}
    assert job.state == "finished"


def test_time_waited_for_pictures_can_be_read(session, recipe):
    trainer = prepare(Job(print), session, with_data(recipe, cache_mb=0, workers=0))
    before = trainer.data.pictures.waited_s
    trainer.step(1)
    assert 0 < trainer.data.pictures.waited_s - before < 1


class Sequences(list):
    """As many prompts as there are rows, made when they are asked for."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return TokenSequence(torch.tensor([index]), torch.zeros(3, 1), (Span(0, 1, False),), ())


class Builder:
    """Stands in for the understanding tower: K/V that tell the row, and the rows that each pass built."""

    def __init__(self, config):
        self.shape, self.passes = (config.layers, 1, config.kv_heads, config.head_dim), []

    def __call__(self, units, rest, on_prompts):
        self.passes.append([int(each.ids[0]) for unit in units for each in unit])
        return [[PrefixKV((self.chunk(each.ids),), 1) for each in unit] for unit in units]

    def chunk(self, ids):
        return KVChunk(*(torch.full(self.shape, float(ids[0])) for _ in range(2)))


def test_of_a_large_parquet_only_the_present_stretch_is_held(tmp_path, tiny, monkeypatch):
    """Its texts, pictures and prefixes all come and go: over an epoch, what is held stays within each one's bound."""
    rows = 3 * WINDOW + 100
    path = tmp_path / "large.parquet"
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    columns = {
        "caption": [f"caption {i} " + "and more words " * 20 for i in range(rows)],
        "image": [(tmp_path / "a.png").read_bytes()] * rows,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=64)
    monkeypatch.setattr("u1_core.data.table.CACHE_BYTES", 10 * 64 * 1000)
    dataset = open_dataset(path)
    config, kv_bytes = tiny("u1").config, 2 * tiny("u1").config.kv_token_bytes
    build, room = Builder(config), Room(0, 100 * kv_bytes, int(1.5 * WINDOW) * (kv_bytes + 300), tmp_path / "kv")
    prompts = PromptSet(config, torch.float32, Sequences(rows), (), "")
    captions = PrefixStore(prompts, build, room, torch.device("cpu"))
    captions.fill()
    pictures = training_pictures(dataset, Framing(16 * 16, 8), budget_bytes=100 * 16 * 16 * 3, workers=2)
    data = TrainingSet(dataset, pictures, CaptionPrefixes(captions, None), Order(Train(), rows, None))
    draw = partial(draw_turn, config, Train(), data)
    seen, held = set(), []
    for number in range(rows):
        turn = draw(number)
        seen.add(turn.sample)
        assert turn.sample == f"row {int(data.prefix_of(turn).chunks[0].v[0, 0, 0, 0])}"
        if number % 64 == 0:
            on_disk = sum(file.stat().st_size for file in room.folder.iterdir())
            held.append((captions.n_bytes, on_disk, dataset.table.held_bytes))
    assert seen == {f"row {i}" for i in range(rows)}
    memory, on_disk, table = (max(values) for values in zip(*held, strict=True))
    assert memory <= room.host_bytes
    assert on_disk <= room.disk_bytes < rows * kv_bytes
    assert table <= 10 * 64 * 1000
    assert len(pictures._kept) == 100
    # A pass for each stretch of the epoch, and each block built once, the one that a window's edge cuts perhaps twice.
    assert len(build.passes) <= 5
    assert rows <= sum(map(len, build.passes)) <= rows + 4 * BLOCK
    pictures.close()
