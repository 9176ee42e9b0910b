import importlib
import io
import subprocess
import sys

import pytest

from u1_core import __version__
from u1_core.cli import ask
from u1_core.cli.main import COMMANDS, main
from u1_core.errors import U1Error


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_overview(capsys, arguments):
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: u1 COMMAND")
    assert [line.split()[0] for line in lines[2:]] == list(COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"u1 {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(capsys, name):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: u1 {name} ")
    assert COMMANDS[name][1] in " ".join(out.split())


def test_unknown_commands(refused):
    assert refused("sampel") == "u1: there is no command 'sampel'; did you mean 'sample'? (`u1 --help` lists them)"
    assert refused("xyzzy") == "u1: there is no command 'xyzzy' (`u1 --help` lists them)"


def test_options_are_not_guessed(capsys):
    """No abbreviations: `--mod` is a mistake, not --model."""
    with pytest.raises(SystemExit) as ended:
        main(["ask", "why", "--mod", "x"])
    assert ended.value.code == 2
    assert "the following arguments are required: --model" in capsys.readouterr().err


def test_how_commands_end(monkeypatch, capsys):
    def fails(args):
        raise U1Error("the file is empty; give another")

    def stops(args):
        raise KeyboardInterrupt

    for run, status, told in ((fails, 2, "error: the file is empty; give another\n"), (stops, 130, "interrupted\n")):
        monkeypatch.setattr(ask, "run", run)
        assert main(["ask", "why", "--model", "x"]) == status
        assert capsys.readouterr().err == told


def test_mistakes_of_our_own_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(ask, "run", lambda args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["ask", "why", "--model", "x"])


def test_words_that_the_terminal_cannot_show(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(ask, "run", lambda args: print("a 狐\ufffd") or 0)
    assert main(["ask", "why", "--model", "x"]) == 0
    out.flush()
    assert out.buffer.getvalue().split() == [b"a", b"??"]


def test_commands_are_imported_when_asked_for():
    """Help and version come without torch."""
    code = "import sys; from u1_core.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).run)
