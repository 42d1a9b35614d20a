"""The whole server on a loopback port, in a thread of the test process, over a real engine process."""

import asyncio
import socket
import threading
from concurrent.futures import Future

from openglm.config.engine import EngineConfig
from openglm.config.server import ServerConfig
from openglm.engine.client import AsyncEngineClient
from openglm.server.app import build_app
from openglm.server.http_server import http_server
from openglm.server.served_model import load_served_model
from openglm.server.service import Service

START_TIMEOUT_S = 120.0


class LiveServer:
    """`url` is the base URL with /v1, `root` without. `stats()` asks the engine itself."""

    def __init__(self, directory, config: ServerConfig | None = None, **engine) -> None:
        self._config = config or ServerConfig(served_model_names=("scripted", "alias"), admin_api_keys=("operator",))
        self._engine = EngineConfig(model=str(directory), **{"threads": 1, "num_speculative_tokens": 1, **engine})
        self._directory = directory
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="live server")
        self._thread.start()
        self._started.result(START_TIMEOUT_S)

    def stats(self):
        return asyncio.run_coroutine_threadsafe(self.client.stats(), self.loop).result(10)

    def wait_until_idle(self) -> None:
        """Until the engine runs nothing; each look at its counters waits for a step."""
        for _ in range(2000):
            stats = self.stats()
            if not stats.num_running and not stats.num_waiting:
                return
        raise AssertionError("the engine still runs something")

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _live(self) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            listener = socket.create_server(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
            self.root = f"http://127.0.0.1:{self.port}"
            self.url = f"{self.root}/v1"
            model = load_served_model(self._directory, names=self._config.served_model_names)
            self.client = AsyncEngineClient(self._engine)
            self.service = Service(self._config, model, self.client)
            http = http_server(build_app(self.service), self._config, self.service.census)
            serving = asyncio.create_task(http.serve(sockets=[listener]))
            info = await self.client.start()
            self.service.engine_loaded(max_model_len=info.max_model_len, max_num_seqs=info.max_num_seqs)
            while not http.started:
                await asyncio.sleep(0)
        except BaseException as error:
            self._started.set_exception(error)
            raise
        self._started.set_result(None)
        await self._stop.wait()
        await self.client.close()
        http.should_exit = True
        await serving
