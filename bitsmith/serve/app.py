"""The server's paths. `bitsmith.serve.engine` does the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from collections.abc import Sequence as Many
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

from anyio import CapacityLimiter
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from bitsmith.errors import BitsmithError, UsageError
from bitsmith.serve.anthropic_messages import MessageAnswer, MessagesBody
from bitsmith.serve.embeddings import embeddings
from bitsmith.serve.engine import Engine
from bitsmith.serve.failures import body as failure_body
from bitsmith.serve.failures import failure, of_body, of_error, of_fields
from bitsmith.serve.guard import App, Guard
from bitsmith.serve.hosts import Hosts
from bitsmith.serve.metrics import Metrics
from bitsmith.serve.openai_answers import ChatAnswers, TextAnswers, sse
from bitsmith.serve.requests import Body, ChatBody, CompletionBody, EmbeddingBody
from bitsmith.serve.responses import ResponseAnswer, ResponsesBody
from bitsmith.serve.stream import AnswerError, Answers, Progress
from bitsmith.serve.talk import Ask, Prepared, check_answers, count_talk, prepare_talk, prepare_text, with_grammar
from bitsmith.serve.threads import GoneError, in_thread
from bitsmith.version import __version__

Result = TypeVar("Result")
MOST_BYTES = 16 << 20  # of a request's body
_LOOK = 0.25  # seconds between looks whether a client is still there


@dataclass(frozen=True)
class Served:
    """What is served.

    name: of the model, as clients see it
    key, hosts: see `Guard`
    format: of its weights, for people
    """

    engine: Engine
    name: str
    key: str | None = None
    format: str = ""
    hosts: Hosts | None = None


class TokenizeBody(Body):
    """POST /tokenize."""

    content: str
    add_special: bool = False
    parse_special: bool = True


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: list[int]


def make_app(served: Served, *, patience: float = 30.0) -> App:
    """The whole server as an ASGI application. patience: see `Guard`"""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(served.engine.close)

    app = FastAPI(title="bitsmith", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.templates, app.state.texts = CapacityLimiter(4), CapacityLimiter(4)
    _add_failures(app)
    _add_openai(app, served)
    _add_anthropic(app, served)
    _add_tools(app, served)
    return Guard(app, key=served.key, most=MOST_BYTES, patience=patience, hosts=served.hosts)


def _add_failures(app: FastAPI) -> None:
    @app.exception_handler(BitsmithError)
    async def wrong(request: Request, error: BitsmithError) -> JSONResponse:
        return of_error(request.url.path, error)

    @app.exception_handler(AnswerError)
    async def failed(request: Request, error: AnswerError) -> JSONResponse:
        return failure(request.url.path, 500, str(error))

    @app.exception_handler(GoneError)
    async def gone(request: Request, error: GoneError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.endswith(("/json", "+json")):
            return failure(request.url.path, 400, "body: expected JSON; send Content-Type: application/json.")
        return of_fields(request.url.path, error.errors()[0])

    @app.exception_handler(ValidationError)
    async def wrong_fields(request: Request, error: ValidationError) -> JSONResponse:
        return of_fields(request.url.path, error.errors()[0])

    @app.exception_handler(Exception)  # a fault of ours; the log tells of it
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return failure(request.url.path, 500, f"internal error: {type(error).__name__}")

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, RecursionError | UnicodeDecodeError):
            return of_body(request.url.path, error.__cause__)
        words = f"{request.method} {request.url.path}: {error.detail}"
        return failure(request.url.path, error.status_code, words)


def _add_openai(app: FastAPI, served: Served) -> None:
    engine, started = served.engine, int(time.time())
    tokenizer = engine.model.tokenizer

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": served.name, "object": "model", "created": started, "owned_by": "bitsmith"}
        return {"object": "list", "data": [{**model, "context_length": engine.context}]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Any:
        if name != served.name:
            return failure("/v1/models", 404, f"there is no model {name!r}; this server has {served.name!r}.")
        return (await models())["data"][0]

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatBody) -> Any:
        prepared = await _prepared(request, engine, body)
        answers = ChatAnswers(served.name, tokenizer, len(prepared.wishes))
        streamed = partial(answers.streamed, with_usage=bool((body.stream_options or {}).get("include_usage")))
        return await _answer(request, served, prepared, answers.whole, streamed if body.stream else None)

    @app.post("/v1/completions")
    async def complete(request: Request, body: CompletionBody) -> Any:
        ask, texts = body.asked(), body.prompts()
        _check_room(engine, len(texts), ask.answers)
        prepared = await _while_connected(request, _prepared_texts(request, engine, texts, ask))
        answers = TextAnswers(served.name, tokenizer, len(prepared.wishes), each=ask.answers)
        streamed = partial(answers.streamed, with_usage=bool((body.stream_options or {}).get("include_usage")))
        return await _answer(request, served, prepared, answers.whole, streamed if body.stream else None)

    @app.post("/v1/responses")
    async def respond(request: Request, body: ResponsesBody) -> Any:
        prepared = await _prepared(request, engine, body)
        answer = ResponseAnswer(served.name, prepared.wishes[0].drawing.sampling)
        return await _answer(request, served, prepared, answer.whole, answer.streamed if body.stream else None)

    @app.post("/v1/embeddings")
    async def embed(request: Request, body: EmbeddingBody) -> dict[str, Any]:
        return await _while_connected(request, embeddings(engine, body, served.name, request.app.state.texts))


def _add_anthropic(app: FastAPI, served: Served) -> None:
    engine = served.engine

    @app.post("/v1/messages")
    async def messages(request: Request, body: MessagesBody) -> Any:
        prepared = await _prepared(request, engine, body)
        answer = MessageAnswer(served.name)
        return await _answer(request, served, prepared, answer.whole, answer.streamed if body.stream else None)

    @app.post("/v1/messages/count_tokens")
    async def count(request: Request, body: dict[str, Any]) -> dict[str, int]:
        asked = MessagesBody.model_validate({"max_tokens": 1, **body}).talk()
        work = in_thread(partial(count_talk, engine, asked), request.app.state.templates, most=engine.limits.queue)
        return {"input_tokens": await _while_connected(request, work)}


def _add_tools(app: FastAPI, served: Served) -> None:
    engine, metrics = served.engine, Metrics(served.engine)
    tokenizer, page = engine.model.tokenizer, (files(__package__) / "page" / "index.html").read_text("utf-8")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        running, waiting = engine.load
        return {"status": "ok", "model": served.name, "format": served.format, "running": running, "waiting": waiting}

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        engine.model.check_length(body.content)
        options = {"add_special": body.add_special, "parse_special": body.parse_special}
        return {"tokens": await run_in_threadpool(lambda: tokenizer.encode(body.content, **options))}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, str]:
        if len(body.tokens) > engine.context:
            raise UsageError(
                f"tokens: {len(body.tokens):,} tokens, but the context has {engine.context:,}; send them in parts."
            )
        return {"content": await run_in_threadpool(lambda: tokenizer.decode(body.tokens, special=True))}

    @app.get("/")
    async def chat_page() -> HTMLResponse:
        policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' data:"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


async def _prepared(request: Request, engine: Engine, body: ChatBody | ResponsesBody | MessagesBody) -> Prepared:
    """The wishes of a conversation. Its template may take long, so that few threads wait for templates."""
    talk = body.talk()
    _check_room(engine, 1, talk.ask.answers)
    templates = request.app.state.templates
    work = in_thread(partial(prepare_talk, engine, talk), templates, most=engine.limits.queue)
    return await _while_connected(request, work)


async def _prepared_texts(request: Request, engine: Engine, texts: Many[str | Many[int]], ask: Ask) -> Prepared:
    """The wishes of texts to continue, one text after the other: a client that goes away ends this with the present."""
    limiter = request.app.state.texts
    wanted = await in_thread(partial(with_grammar, engine, ask), limiter)
    all_of = [await in_thread(partial(prepare_text, engine, text, wanted), limiter) for text in texts]
    return Prepared(tuple(wish for each in all_of for wish in each.wishes))


def _check_room(engine: Engine, texts: int, answers: int) -> None:
    """Raise UsageError for a request of more answers than the queue ever holds, before any work."""
    if not texts:
        raise UsageError("prompt: expected at least one text.")
    check_answers(answers)
    most = engine.limits.queue
    if texts * answers > most:
        raise UsageError(f"the request asks for {texts * answers:,} answers; this server has room for {most:,}.")


async def _answer(
    request: Request,
    served: Served,
    prepared: Prepared,
    whole: Callable[[AsyncIterator[Progress]], Coroutine[Any, Any, dict[str, Any]]],
    streamed: Callable[[AsyncIterator[Progress]], AsyncIterator[str]] | None,
) -> Any:
    """The whole answer, or with `streamed` a stream of it. Where the client goes away, the work stops.

    Raises BusyError where the queue is full.
    """
    answers = Answers(served.engine, prepared)
    if streamed is None:
        try:
            return await _while_connected(request, whole(answers))
        finally:
            answers.cancel()

    async def events() -> AsyncIterator[str]:
        try:
            async for event in streamed(answers):
                yield event
        except AnswerError as error:  # the status is out already, so the error is an event
            told = failure_body(request.url.path, 500, str(error))
            yield ("event: error\n" if request.url.path.startswith("/v1/messages") else "") + sse(told)
        finally:
            answers.cancel()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is given up where the client goes away. Raises GoneError then."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=_LOOK)
            if done:
                return task.result()
            if await request.is_disconnected():
                raise GoneError
    finally:
        task.cancel()
