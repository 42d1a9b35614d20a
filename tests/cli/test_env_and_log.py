import io
import json
import logging
from pathlib import Path

import pytest

from openglm import env
from openglm.errors import ConfigError
from openglm.log import set_up_logging


@pytest.fixture
def logger():
    """A logger of ours whose set-up is undone after the test."""
    loggers = [logging.getLogger(name) for name in ("openglm", "uvicorn")]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in loggers]
    yield logging.getLogger("openglm.server.test")
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


def test_variables_are_named_after_flags_and_empty_ones_do_not_count():
    environ = {"GLM_MAX_MODEL_LEN": "5", "GLM_PORT": "", "MAX_MODEL_LEN": "7"}
    assert env.flag_values(["--max-model-len", "--port", "--host"], environ) == {"--max-model-len": "5"}


@pytest.mark.parametrize(("text", "number"), [(None, None), ("", None), ("4", 4), ("4,2", 4)])
def test_the_number_of_threads(text, number):
    assert env.num_threads({} if text is None else {"OMP_NUM_THREADS": text}) == number


def test_the_cache_folder_is_the_one_of_the_xdg_specification(monkeypatch):
    assert env.cache_folder({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/openglm")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    for ignored in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "relative"}):
        assert env.cache_folder(ignored) == Path("/home/someone/.cache/openglm")

    def homeless():
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    assert env.cache_folder({}) is None


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_a_senseless_number_of_threads_is_refused(text):
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS"):
        env.num_threads({"OMP_NUM_THREADS": text})


def test_colour_is_off_for_any_value():
    assert env.no_color({"NO_COLOR": "0"}) and not env.no_color({"NO_COLOR": ""}) and not env.no_color({})


def test_text_lines_carry_fields_and_cannot_be_forged(logger):
    out = io.StringIO()
    set_up_logging("info", "text", out)
    logger.info("path %s", "/a\r\n12:00:00 INFO forged\x1b[2J", extra={"tokens": 3})
    logger.debug("not shown")
    (first, second) = out.getvalue().splitlines()
    assert " INFO server.test: path /a\\x0d" in first
    assert second.startswith("    12:00:00 INFO forged\\x1b[2J tokens=3")


def test_json_lines_are_one_object_each_with_exceptions_inside(logger):
    out = io.StringIO()
    set_up_logging("info", "json", out)
    try:
        raise ValueError("wrong\nthing")
    except ValueError:
        logger.exception("failed", extra={"request": "r1"})
    (line,) = out.getvalue().splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["message"], record["request"]) == ("error", "openglm.server.test", "failed", "r1")
    assert "ValueError: wrong" in record["exception"]


def test_a_second_set_up_replaces_the_first(logger):
    first, second = io.StringIO(), io.StringIO()
    set_up_logging("info", stream=first)
    set_up_logging("warning", stream=second)
    logger.warning("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)
