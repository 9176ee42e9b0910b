import json

import pytest

from u1_core.train.journal import Journal
from u1_core.weights.write import NoRoomError


@pytest.fixture
def told():
    return []


@pytest.fixture
def journal(tmp_path, told):
    return Journal(tmp_path / "log.jsonl", told.append)


def samples(journal):
    return [json.loads(line)["sample"] for line in journal._path.read_text(encoding="utf-8").splitlines()]


def test_it_grows_by_whole_lines(journal, told):
    assert journal.n_bytes() == 0
    journal.append([{"sample": "é.png"}, {"sample": "b.png"}])
    assert journal.n_bytes() == len('{"sample": "é.png"}\n{"sample": "b.png"}\n'.encode())
    journal.append([{"sample": "c.png"}])
    assert samples(journal) == ["é.png", "b.png", "c.png"]
    assert told == []


def test_it_is_cut_back_to_a_length(journal):
    journal.append([{"sample": 1}])
    length = journal.n_bytes()
    journal.append([{"sample": 2}])
    journal.cut(length)
    journal.append([{"sample": 3}])
    assert samples(journal) == [1, 3]


@pytest.mark.parametrize("taken", [0, 5])
def test_what_a_full_disk_does_not_take_is_written_when_there_is_room(journal, told, full_disk, taken):
    """Whether the disk takes nothing or part of a line."""
    journal.append([{"sample": 1}])
    with full_disk("log.jsonl", taken):
        for sample in (2, 3):
            journal.append([{"sample": sample}])
            assert samples(journal) == [1]
        with pytest.raises(NoRoomError):
            journal.n_bytes()
    assert [line.partition(": ")[2] for line in told] == [
        "cannot be written (No space left on device); the log's lines are kept in memory until it can be, and the run "
        "goes on"
    ]
    journal.append([{"sample": 4}])
    assert samples(journal) == [1, 2, 3, 4]
    with full_disk("log.jsonl", taken):
        journal.append([{"sample": 5}])
    assert len(told) == 2
    assert journal.n_bytes() == len('{"sample": 1}\n') * 5


def test_what_is_cut_off_is_not_written_later(journal, full_disk):
    journal.append([{"sample": 1}])
    length = journal.n_bytes()
    with full_disk("log.jsonl"):
        journal.append([{"sample": 2}])
        journal.cut(length)
    journal.append([{"sample": 3}])
    assert samples(journal) == [1, 3]
