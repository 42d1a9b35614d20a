"""One scripted checkpoint and one live server for all server tests."""

import logging

import pytest


@pytest.fixture(scope="session")
def scripted_dir(tmp_path_factory):
    """A checkpoint that thinks, says a word, and calls get_weather(city="Zürich")."""
    from scripted_model import THINKING_AND_CALL, write_scripted_model  # loads torch, which most tests here do without

    directory = tmp_path_factory.mktemp("models") / "scripted"
    write_scripted_model(directory, THINKING_AND_CALL)
    return directory


@pytest.fixture(scope="session")
def live(scripted_dir):
    """The server over that checkpoint; it must survive every test that uses it."""
    from live_server import LiveServer

    server = LiveServer(scripted_dir)
    yield server
    server.close()


@pytest.fixture(scope="session")
def thoughtful(tmp_path_factory):
    """A server whose model thinks "HmHmHm..." until it is stopped, and then answers "Done."."""
    from live_server import LiveServer
    from scripted_model import THINKING_FOR_EVER, write_scripted_model

    directory = tmp_path_factory.mktemp("models") / "thoughtful"
    write_scripted_model(directory, THINKING_FOR_EVER, stuck_at="Hm", context=65_536)
    server = LiveServer(directory)
    yield server
    server.close()


@pytest.fixture
def server_errors():
    """Records of level ERROR that the server logs during a test; a bug that became a 500 shows up here."""
    records = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append
    logger = logging.getLogger("openglm")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.fixture
def logging_restored():
    """Undo what a command run in this process does to logging."""
    loggers = [logging.getLogger(name) for name in ("openglm", "uvicorn")]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
