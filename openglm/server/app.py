"""The ASGI application: which route exists for whom, and what answers where none does."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from openglm.server import anthropic_routes, operations, sglang_routes, token_routes, zai_routes
from openglm.server.access import Access, Gate
from openglm.server.completions_routes import completions
from openglm.server.dialects import write_refusal
from openglm.server.exposition import MetricsRoute
from openglm.server.json_reply import JSONReply, encode
from openglm.server.openai_routes import Models, StopThinking, chat_completions
from openglm.server.openapi import OpenAPIRoute
from openglm.server.page_routes import PageRoutes
from openglm.server.refusal import Refusal, Refused
from openglm.server.request_context import current_request
from openglm.server.responses_routes import Responses
from openglm.server.service import Service
from openglm.server.web_page import WebPage


def build_app(service: Service) -> ASGIApp:
    """The application around one service."""
    models, health, control, responses = Models(service), _Health(service), _Control(service), Responses(service)
    page, page_routes, openapi = WebPage(), PageRoutes(service), OpenAPIRoute(service)
    routes = [
        Route("/health", health.alive, methods=["GET"]),
        Route("/ready", health.ready, methods=["GET"]),
        Route("/metrics", MetricsRoute(service).show, methods=["GET"]),
        Route("/openapi.json", openapi.show, methods=["GET"]),
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
    ]
    # Routes that change the server for everybody. Who sends no admin key finds none of them: 404, as for any path that is not there.
    control_routes = [
        Route("/drain", control.drain, methods=["POST"]),
        Route("/resume", control.resume, methods=["POST"]),
        *operations.control_routes(service),
    ]
    openapi.describe(routes, control_routes)
    config = service.config
    service.metrics.name_handlers({route.endpoint: route.path for route in (*routes, *control_routes)})
    router = _Routes(routes, control_routes)
    app: ASGIApp = Gate(router, access=Access(config), write=write_refusal, observer=service.metrics, open_reads=page.paths)
    if config.allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=config.allowed_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("authorization", "content-type", "x-api-key", "x-request-id"),
            expose_headers=("x-request-id", "retry-after"),
        )
    return app


class _Routes:
    """The routers of both planes, with their own refusals in our words."""

    def __init__(self, routes: list[Route], control_routes: list[Route]) -> None:
        # A redirect to or from a trailing slash would be answered although no route has that path.
        self._router = Router(routes, redirect_slashes=False)
        self._admin_router = Router([*routes, *control_routes], redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # tells Starlette to raise where it would write a plain-text answer
        router = self._admin_router if current_request().is_admin else self._router
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            if error.status_code == 404:
                raise Refused(Refusal(404, "this server has no such route", "no_route")) from None
            raise Refused(
                Refusal(405, "this route takes another method", "no_route", headers=(("Allow", _methods(router, scope)),))
            ) from None


def _methods(router: Router, scope: Scope) -> str:
    """The methods of a path that more than one route may have, of which each knows only its own."""
    found = [route for route in router.routes if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE]
    return ", ".join(sorted(set().union(*(route.methods or () for route in found if route.path == found[0].path))))


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


class _Control:
    """Taking this server out of service and back, for a rolling update: a router sees /ready, running answers finish."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def drain(self, request: Request) -> Response:
        """Take no more work; says how many requests are still being answered."""
        del request
        self._service.begin_drain()
        return self._state()

    async def resume(self, request: Request) -> Response:
        """Take work again."""
        del request
        self._service.end_drain()
        return self._state()

    def _state(self) -> Response:
        service = self._service
        return JSONReply(encode({"draining": service.draining, "ready": service.ready, "in_flight": service.traffic.num_in_flight}))
