"""A page of another name cannot reach the server, though its name points to this machine (DNS rebinding)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from bitsmith.cli.serve import ServeOptions, _hosts, serve  # noqa: E402
from bitsmith.errors import UsageError  # noqa: E402
from bitsmith.serve.hosts import Hosts  # noqa: E402
from tests.serve.server import Running, serving  # noqa: E402


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(allowed=["My.Machine"]) as found:
        yield found


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "a.localhost", "my.machine:443"]
)
def test_own_names(running: Running, host: str) -> None:
    for path in ("/", "/health", "/v1/models"):
        assert httpx.get(f"{running.url}{path}", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "my.machine.x", ""],
)
def test_other_names(running: Running, host: str) -> None:
    for path in ("/", "/health", "/v1/models", "/v1/messages"):
        found = httpx.get(f"{running.url}{path}", headers={"Host": host})
        assert found.status_code == 403
        error = found.json()["error"]
        assert error["type"] == ("permission_error" if path == "/v1/messages" else "invalid_request_error")
        assert "`--allowed-host`" in error["message"]
    posted = httpx.post(f"{running.url}/v1/completions", headers={"Host": host}, json={"prompt": "x", "max_tokens": 1})
    assert posted.status_code == 403
    assert running.engine.load == (0, 0)


def test_each_of_several_headers_counts() -> None:
    assert Hosts().refused([b"localhost", b"evil.example"]) == "evil.example"
    assert Hosts().refused([]) == ""
    assert Hosts(["a.b."]).refused([b"A.B"]) is None


def test_where_names_are_checked() -> None:
    def refuses(**words: object) -> bool:
        hosts = _hosts(ServeOptions(**words))  # type: ignore[arg-type]
        return hosts is not None and hosts.refused([b"evil.example"]) is not None

    assert refuses()
    assert refuses(host="::1")
    assert not refuses(host="0.0.0.0")
    assert refuses(host="0.0.0.0", allowed_host=("my.machine",))
    assert not refuses(allowed_host=("evil.example",))


@pytest.mark.parametrize("name", ["http://my.machine", "my.machine:80", "my.machine/x", "*", ""])
def test_what_is_no_name(name: str) -> None:
    found = CliRunner().invoke(serve, ["no-such-model", "--allowed-host", name])
    assert isinstance(found.exception, UsageError)
    assert "--allowed-host" in found.exception.flags, json.dumps(name)
    assert "expected a name alone" in found.exception.flags
