import json

import pytest

from u1_core.cli.main import main
from u1_core.plan import checks


def test_a_page_with_a_line_for_each_thing(capsys):
    assert main(["doctor", "--device", "cpu", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[2:17].strip() for line in lines[:4]] == ["system", "torch", "card", "host memory"]
    assert lines[2].startswith("! ")


@pytest.mark.parametrize(("sound", "status"), [(True, 0), (False, 1)])
def test_wrong_gradients_are_an_exit_status(monkeypatch, capsys, sound, status):
    found = checks.Finding("gradients", "as they are", sound)
    monkeypatch.setattr(checks, "_gradients", lambda device: found)
    assert main(["doctor", "--device", "cpu", "--json"]) == status
    assert json.loads(capsys.readouterr().out)[-1] == {"name": "gradients", "text": "as they are", "sound": sound}


def test_a_device_that_there_is_not(capsys):
    assert main(["doctor", "--device", "gpu"]) == 2
    assert capsys.readouterr().err == "error: device 'gpu' is none of auto, cpu, cuda, cuda:N\n"
