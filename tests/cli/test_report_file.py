"""A report that could not be written is refused before anything runs."""

import re

import pytest

from openglm.cli.main import main


@pytest.mark.parametrize("arguments", [["eval", "nano", "--json"], ["eval", "nano", "--markdown"], ["bench", "server", "--json"]])
@pytest.mark.parametrize("path", ["no-such-folder/report", "."])
def test_unwritable_report_is_refused_at_once(arguments, path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, path])
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().err)  # typer draws a box and wraps in it
    assert ended.value.code == 2 and "a file cannot be written there" in shown
