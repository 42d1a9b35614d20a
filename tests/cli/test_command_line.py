"""The command as a newcomer meets it."""

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
