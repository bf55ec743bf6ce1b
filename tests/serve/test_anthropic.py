"""Anthropic's own client against a running server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
anthropic = pytest.importorskip("anthropic")

from tests.serve.server import Running, serving  # noqa: E402
from tests.tiny import with_tools  # noqa: E402

GREEDY = {"temperature": 0}
TALK: list[Any] = [{"role": "user", "content": "Tell me of the whale."}]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving(key="secret") as found:
        yield found


@pytest.fixture
def client(running: Running) -> Any:
    return anthropic.Anthropic(base_url=running.url, api_key="secret", max_retries=0)


def test_whole_and_streamed_answers(running: Running, client: Any) -> None:
    system: list[Any] = [{"role": "system", "content": "Be short."}]
    expected = running.model.chat([*system, *TALK], max_tokens=16, temperature=0)
    made = client.messages.create(
        model="reference", messages=TALK, system="Be short.", max_tokens=16, extra_body=GREEDY
    )
    assert made.content[0].text == expected
    assert made.stop_reason == "max_tokens"
    assert made.usage.output_tokens == 16
    with client.messages.stream(
        model="reference", messages=TALK, system="Be short.", max_tokens=16, extra_body=GREEDY
    ) as stream:
        assert "".join(stream.text_stream) == expected
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_stops_are_named(running: Running, client: Any) -> None:
    whole = running.model.chat(TALK, max_tokens=16, temperature=0)
    stop = whole[6:9]
    made = client.messages.create(
        model="reference", messages=TALK, max_tokens=16, extra_body=GREEDY, stop_sequences=[stop]
    )
    assert made.content[0].text == whole[: whole.index(stop)]
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", stop)


@pytest.fixture(scope="module")
def tool_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a model whose chat template knows tools."""
    with serving(model=with_tools(tmp_path_factory.mktemp("tools") / "model")) as found:
        yield anthropic.Anthropic(base_url=found.url, api_key="none", max_retries=0)


def test_tools_that_the_template_does_not_tell_of_are_refused(client: Any) -> None:
    tool: Any = {"name": "dive", "input_schema": {"type": "object"}}
    with pytest.raises(anthropic.BadRequestError, match="does not tell the model of tools"):
        client.messages.create(model="reference", messages=TALK, max_tokens=4, tools=[tool])
    with pytest.raises(anthropic.BadRequestError, match="does not tell the model of tools"):
        client.messages.count_tokens(model="reference", messages=TALK, tools=[tool])


def test_streamed_and_whole_answers_count_alike(running: Running, client: Any) -> None:
    words: Any = {"model": "reference", "messages": TALK, "max_tokens": 4, "extra_body": GREEDY}
    client.messages.create(**words)  # so that the cache holds a part of the prompt
    whole = client.messages.create(**words).usage
    events = list(client.messages.create(**words, stream=True))
    first = next(event.message.usage for event in events if event.type == "message_start")
    last = next(event.usage for event in events if event.type == "message_delta")
    assert whole.cache_read_input_tokens > 0
    assert whole.input_tokens + whole.cache_read_input_tokens == len(running.model.chat_ids(TALK))
    for found in (first, last):
        counts = (found.input_tokens, found.cache_read_input_tokens)
        assert counts == (whole.input_tokens, whole.cache_read_input_tokens)


def test_tools(tool_client: Any) -> None:
    client = tool_client
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"depth": {"enum": ["deep", "flat"]}}, "required": ["depth"]}
    tool = {"name": "dive", "description": "Dive.", "input_schema": schema | {"additionalProperties": False}}
    made = client.messages.create(
        model="reference", messages=TALK, max_tokens=100, tools=[tool], tool_choice={"type": "any"}, extra_body=GREEDY
    )
    assert made.stop_reason == "tool_use"
    assert made.content[0].name == "dive"
    assert made.content[0].input["depth"] in ("deep", "flat")


def test_tokens_are_counted(running: Running, client: Any) -> None:
    counted = client.messages.count_tokens(model="reference", messages=TALK)
    assert counted.input_tokens == len(running.model.chat_ids(TALK))


def test_errors_have_anthropics_form(running: Running, client: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="unknown role"):
        client.messages.create(model="reference", messages=[{"role": "pirate", "content": "x"}], max_tokens=4)
    stranger = anthropic.Anthropic(base_url=running.url, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError, match="this key is wrong; expected x-api-key"):
        stranger.messages.create(model="reference", messages=TALK, max_tokens=4)


def test_an_answer_that_is_begun_goes_on(running: Running, client: Any) -> None:
    tokenizer = running.model.tokenizer
    ids = tokenizer.encode(tokenizer.chat(TALK) + "The whale is", add_special=False, parse_special=True)
    begun: list[Any] = [*TALK, {"role": "assistant", "content": "The whale is"}]
    made = client.messages.create(model="reference", messages=begun, max_tokens=12, extra_body=GREEDY)
    assert made.content[0].text == running.model.generate(ids, max_tokens=12, temperature=0)
    assert client.messages.count_tokens(model="reference", messages=begun).input_tokens == len(ids)
    parts: list[Any] = [*TALK, {"role": "assistant", "content": [{"type": "text", "text": "The whale is"}]}]
    with client.messages.stream(model="reference", messages=parts, max_tokens=12, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == made.content[0].text
    spelled: list[Any] = [*TALK, {"role": "assistant", "content": "<|endoftext|>"}]  # a text, not the end
    found = client.messages.count_tokens(model="reference", messages=spelled).input_tokens
    assert found > client.messages.count_tokens(model="reference", messages=TALK).input_tokens + 1


def test_an_answer_that_cannot_be_begun(client: Any) -> None:
    pytest.importorskip("llguidance")
    tool = {"name": "dive", "description": "Dive.", "input_schema": {"type": "object"}}
    begun: list[Any] = [*TALK, {"role": "assistant", "content": "The"}]
    for messages, words, said in (
        ([*TALK, {"role": "assistant", "content": "The "}], {}, "white space"),
        (begun, {"tools": [tool], "tool_choice": {"type": "any"}}, "must be a call"),
    ):
        with pytest.raises(anthropic.BadRequestError, match=said):
            client.messages.create(model="reference", messages=messages, max_tokens=4, **words)
