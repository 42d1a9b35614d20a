"""The command as a newcomer meets it."""

import errno
import signal
import subprocess
import sys

import pytest

from openglm import __version__
from openglm.cli.main import VERBS, main


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_every_verb_and_loads_no_torch(arguments):
    script = f"import sys; from openglm.cli.main import main\ntry: main({arguments!r})\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_teaches_with_an_example_and_loads_no_torch(verb):
    script = f"import sys; from openglm.cli.main import main\ntry: main(['{verb}', '--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"glm {verb}" in done.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and __version__ in capsys.readouterr().out


def test_unknown_verb_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serv"])
    assert ended.value.code == 2 and "serve" in capsys.readouterr().err


def test_own_errors_are_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["render", "no-such-file.json"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "no-such-file.json" in error and "Traceback" not in error


@pytest.mark.parametrize("verb", [["generate", "Hello"], ["serve"]])
def test_an_unknown_weight_format_names_the_known_ones(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--quantization", "int3"])
    assert ended.value.code == 2 and "fp8, int8, int4, w8a8" in capsys.readouterr().err.replace("\n", " ")


GLM = [sys.executable, "-m", "openglm.cli.main"]


def test_a_closed_standard_input_is_an_empty_one():
    done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *GLM, "parse"], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and '"content": ""' in done.stdout


def test_what_the_terminal_cannot_show_is_escaped():
    script = "import openglm.cli.main as m\nm._verb = lambda name: lambda *_, **__: print('\u4f60')\nm.main(['chat'])"
    environment = {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u4f60\n", b"")


def test_ctrl_c_while_modules_load_is_quiet():
    script = "import os, signal, sys\nsys.modules['typer'] = None\nimport openglm.cli.main as m\n"
    script += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits that it is ignored
    script += "m._verb = lambda name: os.kill(os.getpid(), signal.SIGINT)\nm.main(['parse'])"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "glm: writing: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/nano"), "glm: runs/nano: Permission denied\n"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(error, words, monkeypatch, capsys):
    def fail(_name):
        raise error

    monkeypatch.setattr("openglm.cli.main._verb", fail)
    with pytest.raises(SystemExit) as ended:
        main(["train"])
    assert (ended.value.code, capsys.readouterr().err) == (2, words)


def test_an_operating_system_error_that_is_not_about_a_file_keeps_its_traceback(monkeypatch):
    def fail(_name):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset")

    monkeypatch.setattr("openglm.cli.main._verb", fail)
    with pytest.raises(ConnectionResetError):
        main(["train"])
