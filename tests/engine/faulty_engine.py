"""The real engine process with faults built in: `python -m faulty_engine SOCKET`, in the place of `openglm.engine.process`.

The first token of a prompt names the fault that its request brings once it decodes. A file named by FAULTY_ENGINE_STUCK makes one
life hang while it loads; it is removed by that life. Standard error goes to the file named by FAULTY_ENGINE_STDERR.
"""

import os
import time
from pathlib import Path

from openglm.engine import process

STUCK_IN_STEP, BROKEN_STEP, NONSENSE, NOT_FINITE, DOUBLE_RELEASE = 101, 102, 103, 104, 105


def stuck_in_a_step() -> None:
    while True:
        time.sleep(0.01)


class FaultyProcess(process.EngineProcess):
    def load(self, config, load):
        marker = Path(os.environ.get("FAULTY_ENGINE_STUCK", "/nonexistent"))
        if marker.exists():
            marker.unlink()
            self._enter_phase("loading weights")
            stuck_in_a_step()
        super().load(config, load)
        core, plain = self._core, self._core.step

        def step():
            faults = {s.tokens[0]: s for s in core.scheduler.running if s.num_output == 2 and s.tokens[0] > 100}
            if STUCK_IN_STEP in faults:
                stuck_in_a_step()
            if BROKEN_STEP in faults:
                raise FloatingPointError("injected")
            if NONSENSE in faults:
                for connection in self._connections.values():
                    connection.socket.sendall(b"\x01\x00\x00\x00\xc1")
            if NOT_FINITE in faults:
                core.runner.kv[0][faults[NOT_FINITE].pages[0]] = float("nan")
            if DOUBLE_RELEASE in faults and not core.stats().kv_accounting_errors:
                core.scheduler.pool.release([core.scheduler.pool.num_pages - 1])
            return plain()

        core.step = step


if __name__ == "__main__":
    os.dup2(os.open(os.environ["FAULTY_ENGINE_STDERR"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    process.EngineProcess = FaultyProcess
    process.main()
