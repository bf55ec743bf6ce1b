"""Keys, sizes, wrong calls of the command, and the other paths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

import bitsmith  # noqa: E402
from bitsmith.cli.serve import _note_template, serve  # noqa: E402
from bitsmith.errors import UsageError  # noqa: E402
from bitsmith.models.tokenizer.chat import TemplateRenderer  # noqa: E402
from tests.serve.server import Running, serving  # noqa: E402
from tests.tiny import make_folder  # noqa: E402


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(key="secret") as found:
        yield found


def test_a_key_is_needed(running: Running) -> None:
    assert httpx.get(f"{running.url}/health").json()["status"] == "ok"
    refused = httpx.get(f"{running.url}/v1/models")
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    for headers in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
        assert httpx.get(f"{running.url}/v1/models", headers=headers).status_code == 200
    assert "a key is needed: Authorization: Bearer KEY" in refused.json()["error"]["message"]
    wrong = httpx.get(f"{running.url}/v1/models", headers={"Authorization": "Bearer secreT"})
    assert wrong.status_code == 401
    assert "this key is wrong" in wrong.json()["error"]["message"]


def test_large_and_broken_bodies(running: Running) -> None:
    headers = {"x-api-key": "secret"}
    large = httpx.post(f"{running.url}/v1/completions", headers=headers, content=b" " * (17 << 20))
    assert large.status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * (1 << 20)

    assert httpx.post(f"{running.url}/v1/completions", headers=headers, content=pieces()).status_code == 413
    typed = headers | {"content-type": "application/json"}
    broken = httpx.post(f"{running.url}/v1/completions", headers=typed, content=b'{"prompt": ')
    assert broken.status_code == 400
    assert "JSON" in broken.json()["error"]["message"]
    untyped = httpx.post(f"{running.url}/v1/completions", headers=headers, content=b'{"prompt": "x"}')
    assert untyped.status_code == 400
    assert "send Content-Type: application/json" in untyped.json()["error"]["message"]
    unknown = httpx.get(f"{running.url}/v1/nothing", headers=headers)
    assert unknown.status_code == 404


def test_tokens_metrics_and_the_page(running: Running) -> None:
    headers = {"x-api-key": "secret"}
    ids = httpx.post(f"{running.url}/tokenize", headers=headers, json={"content": "The whale"}).json()["tokens"]
    assert ids == running.model.tokenizer.encode("The whale", add_special=False)
    text = httpx.post(f"{running.url}/detokenize", headers=headers, json={"tokens": ids}).json()["content"]
    assert text == "The whale"
    httpx.post(
        f"{running.url}/v1/completions", headers=headers, json={"prompt": "The whale", "max_tokens": 3}, timeout=60
    )
    page = httpx.get(f"{running.url}/metrics", headers=headers).text
    assert "bitsmith_generated_tokens_total 3.0" in page
    html = httpx.get(f"{running.url}/").text
    assert "<title>bitsmith</title>" in html
    assert "http://" not in html
    assert "https://" not in html


def test_wrong_calls_are_refused_before_the_model_is_loaded() -> None:
    for words, said in (
        (["--host", "0.0.0.0"], "can be reached by others: give --api-key"),
        (["--port", "70000"], "expected 0 to 65535"),
        (["--parallel", "0"], "expected 1 or more"),
        (["--context", "0"], "expected 1 or more tokens"),
        (["--host", "192.0.2.1", "--no-auth"], "give another --host"),
    ):
        found = CliRunner().invoke(serve, ["no-such-model", *words])
        assert isinstance(found.exception, UsageError)
        assert said in found.exception.flags, json.dumps(words)


def test_a_port_in_use(running: Running) -> None:
    port = running.url.rpartition(":")[2]
    found = CliRunner().invoke(serve, ["reference", "--port", port])
    assert isinstance(found.exception, UsageError)
    assert "give another --port" in found.exception.flags


def test_a_template_that_never_ends_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bitsmith.models.tokenizer.TemplateRenderer", lambda: TemplateRenderer(seconds=0.5))
    folder = make_folder(tmp_path / "hostile")
    (folder / "chat_template.jinja").write_text(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )
    _note_template(bitsmith.load(folder))
    assert "warning: the model's chat template takes more than" in capsys.readouterr().err
    _note_template(bitsmith.load("reference"))
    assert capsys.readouterr().err == ""


def test_a_context_that_does_not_fit_names_the_models_own() -> None:
    found = CliRunner().invoke(serve, ["reference", "--port", "0", "--context", "9999999999"])
    assert isinstance(found.exception, UsageError)
    assert "was made for 1,024 tokens" in found.exception.flags


def test_a_cache_that_does_not_fit() -> None:
    found = CliRunner().invoke(serve, ["reference", "--port", "0", "--parallel", "1000000"])
    assert isinstance(found.exception, UsageError)
    assert "do not fit into the" in found.exception.flags
