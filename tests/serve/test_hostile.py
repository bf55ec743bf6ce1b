"""Requests, models and clients that mean harm, or are broken: each gets an error, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from bitsmith.models.tokenizer import chat  # noqa: E402
from bitsmith.serve.engine import Limits  # noqa: E402
from tests.serve.server import Running, serving  # noqa: E402
from tests.tiny import make_folder  # noqa: E402

TALK = [{"role": "user", "content": "Tell me of the whale."}]
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ENORMOUS = "{% for i in range(99999) %}whales and whales and whales{% endfor %}"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(Limits(parallel=2, queue=4)) as found:
        yield found


@pytest.fixture(autouse=True)
def lives(running: Running) -> Iterator[None]:
    """After each test the server answers as it did before."""
    yield
    expected = running.model.generate("The whale", max_tokens=4, temperature=0)
    body = {"prompt": "The whale", "max_tokens": 4, "temperature": 0}
    found = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
    assert found.json()["choices"][0]["text"] == expected


def refused(running: Running, path: str, body: Any, status: int = 400) -> str:
    """The words of the error."""
    found = httpx.post(
        f"{running.url}{path}", content=json.dumps(body), headers={"content-type": "application/json"}, timeout=60
    )
    assert found.status_code == status, found.text
    error: dict[str, Any] = found.json()["error"]
    if path.startswith("/v1/messages"):
        assert found.json()["type"] == "error"
    else:
        assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 1000
    return str(error["message"])


@pytest.mark.parametrize(("template", "said"), [(ENDLESS, "takes more than"), (ENORMOUS, "writes more than")])
def test_a_template_that_never_ends(template: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = chat.TemplateRenderer
    short = lambda *args, seconds=0.5, **words: inner(*args, seconds=seconds, **words)  # noqa: E731
    monkeypatch.setattr(chat, "TemplateRenderer", short)
    monkeypatch.setattr("bitsmith.models.tokenizer.TemplateRenderer", short, raising=False)
    folder = make_folder(tmp_path / "hostile")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with serving(Limits(parallel=2), model=folder, context=64) as found, ThreadPoolExecutor(12) as threads:
        chats = [
            threads.submit(refused, found, "/v1/chat/completions", {"messages": TALK, "max_tokens": 4}, 500)
            for _ in range(8 if template is ENDLESS else 2)
        ]
        body = {"prompt": [100, 101, 102], "max_tokens": 2, "temperature": 0}
        assert httpx.post(f"{found.url}/v1/completions", json=body, timeout=60).status_code == 200
        assert all(said in each.result() and "another one" not in each.result() for each in chats)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(4)]} for i in range(16)]},
        {"type": "string", "pattern": "(a"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    ],
)
def test_schemas_that_cannot_be_followed(running: Running, schema: dict[str, Any]) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    said = refused(running, "/v1/chat/completions", {"messages": TALK, "max_tokens": 8, "response_format": form})
    assert "schema cannot be followed" in said
    assert not said.endswith("error:")


def test_a_schema_that_is_too_large_is_seen_while_it_is_followed(running: Running) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": TALK, "max_tokens": 50, "response_format": form}
    assert "grammar of the answer failed" in refused(running, "/v1/chat/completions", body, 500)


@pytest.mark.parametrize(
    "words",
    [
        {"regex": "a", "response_format": {"type": "json_object"}},
        {"tool_choice": "required", "response_format": {"type": "json_object"}},
        {"tool_choice": "required", "regex": "a"},
        {"tool_choice": {"type": "function", "function": {"name": "look"}}, "grammar": 'start: "a"'},
    ],
)
def test_two_forms_of_one_answer(running: Running, words: dict[str, Any]) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert "give one of them" in refused(running, "/v1/chat/completions", {"messages": TALK, "tools": tools, **words})


def test_a_schema_nested_deeper_than_json_is_read(running: Running) -> None:
    pytest.importorskip("llguidance")
    deep = '{"type":"array","items":' * 3000 + '{"type":"string"}' + "}" * 3000
    body = (
        '{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"schema":'
    )
    headers = {"content-type": "application/json"}
    found = httpx.post(f"{running.url}/v1/chat/completions", content=f"{body}{deep}}}}}}}", headers=headers, timeout=60)
    assert found.status_code == 400
    assert found.json()["error"]["message"]
    for content, said in (
        (b"[" * 200_000, "the body is not JSON that can be read: it is nested too deep"),
        (b'{"prompt": x}', "the body is not JSON: expecting value at character 11"),
        (b'{"prompt": "\xff"}', "the body is not JSON: it is not UTF-8 at byte 12"),
    ):
        broken = httpx.post(f"{running.url}/v1/completions", content=content, headers=headers, timeout=60)
        assert broken.status_code == 400
        assert said in broken.json()["error"]["message"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"stop": ["x"] * 17}, "at most 16 texts"),
        ({"stop": "x" * 1001}, "at most 16 texts of 1000"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "at most 1,024"),
        ({"logit_bias": {"1": 1e9}}, "from -100 to 100"),
        ({"prompt": ["x"] * 5}, "has room for 4"),
        ({"prompt": ["x"] * 100_000, "regex": "a+"}, "has room for 4"),
        ({"prompt": ["x"] * 3, "n": 2}, "has room for 4"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"seed": "x"}, "seed"),
        ({"grammar": "start: start"}, "grammar"),
        ({"grammar": "start: ("}, "grammar cannot be followed"),
        ({"regex": "("}, "unclosed group"),
        ({"grammar": "start: /(/"}, "unclosed group"),
        ({"regex": "\ud800"}, "surrogate"),
        ({"regex": "a", "grammar": 'start: "a"'}, "grammar, regex: an answer can have one form"),
        ({"repeat_penalty": 1e-320}, "repeat_penalty"),
        ({"repeat_penalty": 101}, "repeat_penalty"),
        ({"grammar": 'start: "\ud800"'}, "surrogate"),
    ],
)
def test_numbers_and_lists_that_are_too_large(running: Running, words: dict[str, Any], said: str) -> None:
    assert said in refused(running, "/v1/completions", {"prompt": "The whale", "max_tokens": 4, **words})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"model": "x", "max_tokens": 4, "messages": [{"role": "user", "content": 5}]}),
        ("/v1/messages", {"model": "x", "max_tokens": 4, "messages": [{"role": "user", "content": [5]}]}),
        (
            "/v1/messages",
            {"model": "x", "max_tokens": 4, "messages": [{"role": "user", "content": [{"type": "text"}]}]},
        ),
        ("/v1/messages/count_tokens", {"messages": 5}),
        ("/v1/messages/count_tokens", {"model": "x", "messages": []}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [5]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "tool_calls": 5}]}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]}),
        ("/v1/chat/completions", {"messages": TALK, "top_logprobs": 2}),
        ("/v1/chat/completions", {"messages": TALK, "tools": [{"function": 5}]}),
        ("/v1/chat/completions", {"messages": TALK, "tools": [{"function": {"name": ["x"]}}]}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": 5}]}),
        ("/v1/chat/completions", {"messages": TALK, "tool_choice": {"function": 5}}),
        ("/v1/chat/completions", {"messages": TALK, "response_format": {"type": "json_schema", "json_schema": 5}}),
        ("/v1/responses", {"input": 5}),
        ("/v1/responses", {"input": "x", "text": {"format": 5}}),
        ("/v1/messages", {"model": "x", "max_tokens": 4, "messages": TALK, "output_config": {"format": 5}}),
        (
            "/v1/messages",
            {"model": "x", "max_tokens": 4, "messages": [{"role": "user", "content": "<|user|>" * 99999}]},
        ),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "<|user|>" * 99999}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<|user|>" * 99999}]}),
        ("/v1/responses", {"input": [5]}),
        ("/v1/responses", {"input": [{"type": "message", "role": "user", "content": [5]}]}),
        ("/v1/embeddings", {"input": []}),
        ("/v1/embeddings", {"input": [[]]}),
        ("/v1/embeddings", {"input": [10**30]}),
        ("/v1/embeddings", {"input": "whale " * 5000}),
        ("/detokenize", {"tokens": [10**30]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [99999999]}),
        ("/detokenize", {"tokens": [5] * 513}),
        ("/tokenize", {"content": 5}),
        ("/tokenize", {"content": "whale " * 1_000_000}),
    ],
)
def test_bodies_of_the_wrong_shape(running: Running, path: str, body: Any) -> None:
    refused(running, path, body)


def test_texts_are_prepared_after_they_are_counted(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """One grammar for all texts of a request, and no work at all for one that asks for too much."""
    pytest.importorskip("llguidance")
    made: list[str] = []
    grammars = running.engine.grammars
    inner = grammars.regex
    monkeypatch.setattr(grammars, "regex", lambda text: made.append(text) or inner(text))
    refused(running, "/v1/completions", {"prompt": ["x"] * 5, "max_tokens": 1, "regex": "a+"})
    assert made == []
    body = {"prompt": ["x"] * 3, "max_tokens": 1, "regex": "a+"}
    assert len(httpx.post(f"{running.url}/v1/completions", json=body, timeout=60).json()["choices"]) == 3
    assert made == ["a+"]


def raw(running: Running, data: bytes) -> socket.socket:
    host, _, port = running.url.removeprefix("http://").partition(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    made.sendall(data)
    return made


def test_half_a_body(running: Running) -> None:
    for _ in range(20):
        raw(running, HEAD % 1000 + b'{"prompt": "').close()
    assert running.engine.load == (0, 0)


def test_a_body_that_never_comes() -> None:
    with serving(patience=0.3) as found:
        made, answer = raw(found, HEAD % 99 + b"{"), ""
        while "did not come within" not in answer and (piece := made.recv(4096)):
            answer += piece.decode()
    assert " 408 " in answer
    assert "did not come within" in answer


def test_a_body_that_comes_in_drops() -> None:
    with serving(patience=0.5) as found:
        made = raw(found, HEAD % 9999 + b"{")
        made.settimeout(0.1)
        for _ in range(100):  # each piece comes in time, the whole does not
            try:
                answer = made.recv(4096).decode()
                break
            except TimeoutError:
                made.sendall(b" ")
        else:
            pytest.fail("the server goes on waiting")
    assert " 408 " in answer


def closed(made: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    made.settimeout(20)
    found = b""
    while piece := made.recv(4096):
        found += piece
    return found


def test_half_a_head() -> None:
    """At the beginning of a connection, and behind a whole request."""
    with serving(patience=0.5) as found:
        assert closed(raw(found, b"GET /health HTTP/1.1\r\nHo")) == b""
        assert closed(raw(found, b"")) == b""
        made = raw(found, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in made.recv(4096)
        made.sendall(b"GET /health HTTP/1.1\r\nHo")
        closed(made)
        body = {"prompt": "The whale", "max_tokens": 100, "temperature": 0}  # an answer may take longer than a head
        assert httpx.post(f"{found.url}/v1/completions", json=body, timeout=60).status_code == 200


def test_more_connections_than_there_may_be() -> None:
    with serving(connections=3) as found:
        held = [raw(found, b"GET /health HTTP/1.1\r\nHo") for _ in range(3)]
        time.sleep(0.2)
        assert b" 503 " in closed(raw(found, b""))
        for each in held:
            each.close()
        time.sleep(0.2)
        assert httpx.get(f"{found.url}/health").status_code == 200


def test_a_client_that_does_not_read(running: Running) -> None:
    """Its answer is computed and kept, and its slot is free for others."""
    body = json.dumps({"prompt": "The whale", "max_tokens": 200, "stream": True, "logprobs": 20}).encode()
    slow = [raw(running, HEAD % len(body) + body) for _ in range(3)]
    end = time.monotonic() + 60
    while running.engine.load != (0, 0) or running.engine.counts.finished < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    for each in slow:
        each.close()
