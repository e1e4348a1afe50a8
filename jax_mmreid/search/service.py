"""The service: a page, and an HTTP interface that does all that the page does, over a model and a store.

    GET    /                               the page              GET  /openapi.json   the interface, for clients
    GET    /api/gallery                    what can be searched
    POST   /api/search                     matches of pictures in any combination of the model's modalities
    POST   /api/entries                    adds such pictures to the gallery
    GET    /api/entries/ID                 an entry              GET  /api/entries/ID/thumbnail   its picture
    DELETE /api/entries/ID                 removes it

Every error is {"error": one sentence}. `guard.Guard` decides who may call. A request that only reads leaves nothing but
its line in the store's audit log.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Annotated, Any

from jax_mmreid import __version__
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.search import pictures, uploads
from jax_mmreid.search.answers import Deleted, Entry, Found, Gallery, Problem, RefusedError
from jax_mmreid.search.engine import Engine
from jax_mmreid.search.guard import Guard

UPLOADS = 16  # requests whose pictures are in memory at the same time; others wait before they are read
MATCHES = 10  # where a search does not say how many
PAGE = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
MISSING = "the service needs FastAPI and python-multipart; pip install 'jax-mmreid[web]'"
log = logging.getLogger(__name__)


class _Thread:
    """One thread for all calls of the model and the store, which run one after the other, in the order they came."""

    def __init__(self):
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def __call__(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.executor, call)


def create_app(engine: Engine, *, tokens: Mapping[str, str] | None = None, user: str = "local") -> Any:
    """The FastAPI application of an engine, an ASGI application for any server.

    Whoever has one of `tokens` {name: token} may call from anywhere. Without tokens callers on this machine may, and
    are `user` in the audit log. Raises ConfigError if the extra `web` is not installed.
    """
    try:
        import fastapi
        import python_multipart  # noqa: F401  Starlette reads forms with it
    except ImportError as error:
        raise ConfigError(MISSING) from error
    thread = _Thread()

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        yield
        thread.executor.shutdown()

    app = fastapi.FastAPI(
        title="jax_mmreid",
        version=__version__,
        description="Search a gallery by pictures of any modalities.",
        docs_url=None,  # that page comes from a CDN
        redoc_url=None,
        lifespan=lifespan,
        dependencies=_schemes(fastapi) if tokens else [],
        responses={code: {"model": Problem} for code in (400, 401, 403, 404, 408, 409, 413, 415, 422, 503)},
    )
    app.add_middleware(Guard, tokens=tokens or {}, user=user)
    _add_errors(app)
    _add_page(app)
    _add_queries(app, engine, thread)
    _add_entries(app, engine, thread)
    return app


def _schemes(fastapi: Any) -> list:
    """What `Guard` accepts, for the schema."""
    from fastapi import security

    return [
        fastapi.Security(scheme(auto_error=False, description=text))
        for scheme, text in ((security.HTTPBearer, "the token"), (security.HTTPBasic, "the token as the password"))
    ]


def _add_errors(app: Any) -> None:
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    def answer(status: int, error: object) -> JSONResponse:
        return JSONResponse({"error": " ".join(str(error).split())}, status)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:
        return answer(error.status, error)

    @app.exception_handler(HTTPException)
    async def strange(request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, f"{request.method} {pictures.shown(request.url.path)}: {error.detail}")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = first["loc"][-1] if len(first["loc"]) > 1 else "the request"
        return answer(422, f"{name}: {first['msg']}")

    @app.exception_handler(DataError)
    async def unusable(request: Request, error: DataError) -> JSONResponse:
        log.error("%s", error)
        return answer(503, error)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        return answer(500, "the service has a defect; its log has the traceback")


def _add_page(app: Any) -> None:
    from starlette.responses import Response

    folder = resources.files("jax_mmreid.search") / "page"

    def add(name: str, kind: str) -> None:
        content = (folder / name).read_bytes()

        async def page() -> Response:
            return Response(content, headers={"content-type": kind})

        path = "/" if name == "index.html" else f"/{name}"
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)

    for name, kind in PAGE.items():
        add(name, kind)


def _add_queries(app: Any, engine: Engine, thread: _Thread) -> None:
    """The routes that take pictures."""
    from fastapi import Query
    from starlette.requests import Request

    turn = asyncio.Semaphore(UPLOADS)
    model = engine.modalities, engine.captions
    form = uploads.form_schema(*model)

    @app.post("/api/search", operation_id="search", openapi_extra=form)
    async def search(
        request: Request,
        k: int = Query(MATCHES, ge=1, description="how many matches"),
        cameras: Annotated[list[int] | None, Query(description="entries of these cameras only")] = None,
        not_cameras: Annotated[list[int] | None, Query(description="no entries of these cameras")] = None,
        since: float | None = Query(None, description="Unix seconds; no earlier entries, none of unknown time"),
        until: float | None = Query(None, description="Unix seconds; no later entries, none of unknown time"),
    ) -> Found:
        """The best matches of the pictures and captions that are sent, which are not kept."""
        chosen = dict(cameras=cameras or (), not_cameras=not_cameras or (), since=since, until=until)
        async with turn:
            query = await uploads.read_query(request, *model, engine.limits.bytes)
            return await thread(engine.search, query, chosen, k, request.state.caller)

    @app.post("/api/entries", operation_id="add", openapi_extra=form, status_code=201)
    async def add(
        request: Request,
        pid: int = Query(-1, ge=-1, lt=2**63, description="the identity, -1 unknown"),
        camid: int = Query(-1, ge=-1, lt=2**31, description="the camera, -1 unknown"),
        time: float | None = Query(None, description="Unix seconds"),
        expires: float | None = Query(None, description="Unix seconds from which on the entry is removed"),
    ) -> Entry:
        """Adds the vectors of the pictures that are sent to the gallery; the pictures themselves are not kept."""
        columns = dict(pid=pid, camid=camid, time=time, expires=expires)
        async with turn:
            query = await uploads.read_query(request, *model, engine.limits.bytes)
            return await thread(engine.add, query, request.state.caller, **columns)


def _add_entries(app: Any, engine: Engine, thread: _Thread) -> None:
    """The routes without pictures in the request."""
    from fastapi import Path
    from starlette.requests import Request
    from starlette.responses import Response

    Number = Annotated[int, Path(ge=0, lt=2**63, description="the id of an entry")]
    drawing = _Thread()  # of thumbnails, one after the other too, so that few large pictures are in memory

    @app.get("/api/gallery", operation_id="gallery")
    async def gallery(request: Request) -> Gallery:
        """What can be searched, and within which limits."""
        return await thread(engine.gallery, request.state.caller)

    @app.get("/api/entries/{number}", operation_id="entry")
    async def entry(number: Number) -> Entry:
        """An entry of the gallery."""
        return await thread(engine.entry, number)

    @app.get(
        "/api/entries/{number}/thumbnail",
        operation_id="thumbnail",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}},
    )
    async def thumbnail(number: Number) -> Response:
        """The picture of an entry as a small JPEG."""
        file = await thread(engine.picture, number)
        try:
            data = await drawing(pictures.thumbnail, file, engine.read, engine.limits.bytes)
        except (DataError, OSError):
            data = None
        if data is None:
            raise RefusedError(404, f"the picture of entry {number} cannot be shown; it is broken or too large")
        return Response(data, media_type="image/jpeg")

    @app.delete("/api/entries/{number}", operation_id="delete")
    async def delete(request: Request, number: Number) -> Deleted:
        """Removes an entry from the gallery; its picture file, which is not the store's, stays."""
        return await thread(engine.delete, number, request.state.caller)
