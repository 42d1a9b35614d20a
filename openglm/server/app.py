"""The ASGI application: which route exists, and what answers where none does."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from openglm.server import anthropic_routes, operations, sglang_routes, token_routes, zai_routes
from openglm.server.access import Gate, KeyRing
from openglm.server.completions_routes import completions
from openglm.server.dialects import write_refusal
from openglm.server.openai_routes import Models, StopThinking, chat_completions
from openglm.server.page_routes import PageRoutes
from openglm.server.refusal import Refusal, Refused
from openglm.server.responses_routes import Responses
from openglm.server.service import Service
from openglm.server.web_page import WebPage


def build_app(service: Service) -> ASGIApp:
    """The application around one service."""
    models, health, responses = Models(service), _Health(service), Responses(service)
    page, page_routes = WebPage(), PageRoutes(service)
    router = Router(
        [
            Route("/health", health.alive, methods=["GET"]),
            Route("/ready", health.ready, methods=["GET"]),
            Route("/v1/models", models.list, methods=["GET"]),
            Route("/v1/models/{name:path}", models.one, methods=["GET"]),
            Route("/v1/chat/completions", chat_completions(service), methods=["POST"]),
            Route("/v1/completions", completions(service), methods=["POST"]),
            *(Route(path, zai_routes.chat_completions(service), methods=["POST"]) for path in zai_routes.PATHS),
            Route("/generate", sglang_routes.generate(service), methods=["POST"]),
            *token_routes.routes(service),
            *operations.routes(service),
            Route("/v1/responses", responses.create, methods=["POST"]),
            Route("/v1/responses/{id}", responses.get, methods=["GET"]),
            Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
            Route("/v1/responses/{id}/cancel", responses.cancel, methods=["POST"]),
            Route("/v1/messages", anthropic_routes.messages(service), methods=["POST"]),
            Route("/v1/messages/count_tokens", anthropic_routes.count_tokens(service), methods=["POST"]),
            Route("/v1/chat/completions/{id}/stop_thinking", StopThinking(service).stop, methods=["POST"]),
            Route("/page/about", page_routes.about, methods=["GET"]),
            Route("/page/figures", page_routes.figures, methods=["GET"]),
            Route("/page/prompt", page_routes.prompt, methods=["POST"]),
            Route("/", page.serve, methods=["GET"]),
            Route("/page/{file:path}", page.serve, methods=["GET"]),
        ],
        redirect_slashes=False,  # a redirect would be answered although no route has that path
    )
    return Gate(_Routes(router), keys=KeyRing(service.config.api_keys), write=write_refusal, open_reads=page.paths)


class _Routes:
    """The router, with its own refusals in our words."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # tells Starlette to raise where it would write a plain-text answer
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            headers = tuple((error.headers or {}).items())
            message = "this server has no such route" if error.status_code == 404 else "this route takes another method"
            raise Refused(Refusal(error.status_code, message, "no_route", headers=headers)) from None


class _Health:
    """Liveness and readiness for whoever watches the process. Empty bodies: the status is the answer."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def alive(self, request: Request) -> Response:
        """200 while this process serves, also when its model still loads; 503 once the engine is dead for good."""
        del request
        return Response(status_code=503 if self._service.engine.state == "dead" else 200)

    async def ready(self, request: Request) -> Response:
        """200 when a request sent now would be worked on at once."""
        del request
        return Response(status_code=200 if self._service.ready else 503)
