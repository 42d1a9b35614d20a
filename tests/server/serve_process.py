"""`glm serve` as a process of its own, for every tier: started with any flags, ready when it says so, read while it runs."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

LOG_TIMEOUT_S = 30.0
EXIT_TIMEOUT_S = 60.0


class ServeProcess:
    """A running server on a free port. `url` is the base URL with /v1, `root` without, `banner` what it printed until it was ready, and
    `log` its lines on standard error."""

    def __init__(self, *arguments, module="openglm.cli.main", path=()) -> None:
        """`module` has the command line of `glm`; `path` are folders in which it is found, besides the usual ones."""
        places = [str(place) for place in path] + ([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "serve", *map(str, arguments), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(places)},
        )
        self.log: list[str] = []
        self._logged = threading.Condition()
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        self.banner = ""
        for line in self.process.stdout:
            self.banner += line
            if line.startswith("  OpenAI base URL"):
                self.url = line.split()[-1]
            if line.startswith("  chosen for you"):
                break
        else:
            self.exit_code()
            raise AssertionError("the server did not start:\n" + self.errors)
        self.root = self.url.removesuffix("/v1")
        self.port = urlsplit(self.url).port

    def _read_log(self) -> None:
        for line in self.process.stderr:
            with self._logged:
                self.log.append(line)
                self._logged.notify_all()

    @property
    def errors(self) -> str:
        """The log as one text; complete once the process has ended."""
        return "".join(self.log)

    def lines(self, start: int) -> Iterator[str]:
        """The log from line `start` on, and what is added to it; fails when nothing more comes."""
        for number in itertools.count(start):
            with self._logged:
                assert self._logged.wait_for(lambda number=number: number < len(self.log), LOG_TIMEOUT_S), "the log has ended"
                line = self.log[number]
            yield line

    def exit_code(self) -> int:
        """Wait for the end, for which somebody else has asked."""
        self.process.stdout.read()
        code = self.process.wait(EXIT_TIMEOUT_S)
        self._reader.join()
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def close(self) -> None:
        """Ask it to end; it must do so cleanly, and nothing may have gone wrong before."""
        self.process.terminate()
        assert self.exit_code() == 0, self.errors
        assert "Traceback" not in self.errors, self.errors

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        """End it at once if it still runs, as after a failed assertion."""
        if self.process.poll() is None:
            self.process.kill()
        if not self.process.stdout.closed:
            self.exit_code()
