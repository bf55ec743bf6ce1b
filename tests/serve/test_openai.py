"""OpenAI's own client against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from bitsmith.runtime.sampling import DEFAULT  # noqa: E402
from bitsmith.serve.openai_answers import usage  # noqa: E402
from bitsmith.serve.wish import Done  # noqa: E402
from tests.serve.server import Running, serving  # noqa: E402
from tests.tiny import with_tools  # noqa: E402

TALK: list[Any] = [{"role": "user", "content": "Tell me of the whale."}]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serving() as found:
        yield found


@pytest.fixture
def client(running: Running) -> Any:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_a_conversation_is_answered_as_run_answers_it(running: Running, client: Any) -> None:
    expected = running.model.chat(TALK, max_tokens=24, temperature=0)
    made = client.chat.completions.create(model="reference", messages=TALK, max_tokens=24, temperature=0)
    assert made.choices[0].message.content == expected
    assert made.choices[0].finish_reason == "length"
    assert made.usage.prompt_tokens == len(running.model.chat_ids(TALK))
    assert made.usage.completion_tokens == 24
    pieces = client.chat.completions.create(
        model="reference",
        messages=TALK,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage.completion_tokens == 24
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"


def test_a_text_is_continued_and_stops_where_asked(running: Running, client: Any) -> None:
    expected = running.model.generate("The whale", max_tokens=30, temperature=0)
    made = client.completions.create(model="reference", prompt="The whale", max_tokens=30, temperature=0)
    assert made.choices[0].text == expected
    stop = expected[8:11]
    cut = client.completions.create(model="reference", prompt="The whale", max_tokens=30, temperature=0, stop=[stop])
    assert cut.choices[0].text == expected[: expected.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    pieces = client.completions.create(
        model="reference", prompt="The whale", max_tokens=30, temperature=0, stop=[stop], stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == cut.choices[0].text


def test_several_answers_and_prompts(running: Running, client: Any) -> None:
    made = client.completions.create(
        model="reference", prompt=["The whale", "A ship"], max_tokens=8, temperature=1.0, n=2, seed=3
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    again = client.completions.create(
        model="reference", prompt=["The whale", "A ship"], max_tokens=8, temperature=1.0, n=2, seed=3
    )
    assert [choice.text for choice in made.choices] == [choice.text for choice in again.choices]
    assert made.choices[0].text != made.choices[1].text


def test_log_probabilities_are_those_of_the_model(running: Running, client: Any) -> None:
    made = client.chat.completions.create(
        model="reference", messages=TALK, max_tokens=3, temperature=0, logprobs=True, top_logprobs=4
    )
    told = made.choices[0].logprobs.content
    ids = running.model.chat_ids(TALK)
    logits = running.model.logits(np.array([ids]), first=len(ids) - 1)[0, 0].astype(np.float64)
    expected = logits - logits.max()
    expected -= np.log(np.exp(expected).sum())
    assert len(told) == 3
    assert told[0].logprob == pytest.approx(expected.max(), abs=5e-3)  # prompts are rounded to bfloat16
    assert [each.logprob for each in told[0].top_logprobs] == pytest.approx(np.sort(expected)[::-1][:4], abs=5e-3)
    assert b"".join(bytes(each.bytes) for each in told).decode() == made.choices[0].message.content


def test_biases_and_penalties_change_what_is_drawn(running: Running, client: Any) -> None:
    token = running.model.tokenizer.encode(" ship", add_special=False)[-1]
    made = client.completions.create(
        model="reference", prompt="The whale", max_tokens=4, temperature=0, logit_bias={str(token): 100}
    )
    assert made.choices[0].text == running.model.tokenizer.decode([token] * 4)
    plain = running.model.tokenizer.encode(
        running.model.generate("The whale", max_tokens=16, temperature=0), add_special=False
    )
    made = client.completions.create(
        model="reference", prompt="The whale", max_tokens=16, temperature=0, presence_penalty=2, frequency_penalty=2
    )
    varied = running.model.tokenizer.encode(made.choices[0].text, add_special=False)
    assert len(set(varied)) > len(set(plain))


def test_answers_follow_a_schema(client: Any) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    for seed in range(3):
        made = client.chat.completions.create(
            model="reference",
            messages=TALK,
            max_tokens=200,
            seed=seed,
            temperature=0.8,
            response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
        )
        found = json.loads(made.choices[0].message.content)
        assert set(found) == {"name", "age"}
        assert len(found["name"]) <= 8
        assert found["age"] <= 99
        assert made.choices[0].finish_reason == "stop"


@pytest.fixture(scope="module")
def tool_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a model whose chat template knows tools."""
    with serving(model=with_tools(tmp_path_factory.mktemp("tools") / "model")) as found:
        yield openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)


def test_a_tool_that_must_be_called_is_called(tool_client: Any) -> None:
    client = tool_client
    pytest.importorskip("llguidance")
    parameters = {"type": "object", "properties": {"depth": {"enum": ["deep", "flat"]}}, "required": ["depth"]}
    parameters |= {"additionalProperties": False}
    tool = {"type": "function", "function": {"name": "dive", "description": "Dive.", "parameters": parameters}}
    made = client.chat.completions.create(
        model="reference", messages=TALK, max_tokens=100, tools=[tool], tool_choice="required", temperature=0
    )
    call = made.choices[0].message.tool_calls[0]
    assert made.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "dive"
    assert json.loads(call.function.arguments)["depth"] in ("deep", "flat")
    pieces = client.chat.completions.create(
        model="reference",
        messages=TALK,
        max_tokens=100,
        tools=[tool],
        tool_choice="required",
        temperature=0,
        stream=True,
    )
    deltas = [piece.choices[0].delta for piece in pieces]
    called = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert [each.function.name for each in called] == ["dive"]


FLY: dict[str, Any] = {
    "type": "function",
    "function": {"name": "fly", "parameters": {"type": "object", "properties": {"where": {"type": "string"}}}},
}


def test_tools_that_the_template_does_not_tell_of_are_refused(client: Any) -> None:
    for choice in ("auto", "required"):
        with pytest.raises(openai.BadRequestError, match="does not tell the model of tools") as caught:
            client.chat.completions.create(
                model="reference", messages=TALK, max_tokens=4, tools=[FLY], tool_choice=choice
            )
        assert caught.value.param == "tools"
    tool: Any = {"type": "function", "name": "fly", "parameters": {"type": "object"}, "strict": False}
    with pytest.raises(openai.BadRequestError, match="does not tell the model of tools"):
        client.responses.create(model="reference", input="x", tools=[tool])
    client.chat.completions.create(model="reference", messages=TALK, max_tokens=1, tools=[FLY], tool_choice="none")


def test_a_forced_call_that_is_cut_is_no_text(tool_client: Any) -> None:
    pytest.importorskip("llguidance")
    words: Any = {"model": "reference", "messages": TALK, "max_tokens": 4, "tools": [FLY], "tool_choice": "required"}
    made = tool_client.chat.completions.create(**words)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == ("", "length")
    assert not made.choices[0].message.tool_calls
    deltas = [
        piece.choices[0].delta.content or "" for piece in tool_client.chat.completions.create(**words, stream=True)
    ]
    assert "".join(deltas) == ""


def test_usage_counts_each_prompt_once(running: Running, client: Any) -> None:
    prompts = ["The whale", "A ship of the line", "Once"]
    wanted = sum(len(running.model.prompt_ids(prompt)) for prompt in prompts)
    words: Any = {"model": "reference", "prompt": prompts, "max_tokens": 2, "n": 2, "temperature": 0}
    made = client.completions.create(**words)
    assert made.usage.prompt_tokens == wanted
    assert 0 <= made.usage.prompt_tokens_details.cached_tokens < wanted
    last = list(client.completions.create(**words, stream=True, stream_options={"include_usage": True}))[-1]
    assert last.usage.prompt_tokens == wanted
    assert last.usage.completion_tokens == 12


def test_each_prompts_cached_tokens_count_once() -> None:
    done = [Done("end", 10, 1, 4), Done("end", 10, 1, 9), Done("end", 20, 1, 5), Done("end", 20, 1, 19)]
    assert usage(done, 2)["prompt_tokens_details"] == {"cached_tokens": 9}
    assert usage(done, 2)["prompt_tokens"] == 30


def test_responses(running: Running, client: Any) -> None:
    expected = running.model.chat(TALK, max_tokens=12, temperature=0)
    made = client.responses.create(model="reference", input=TALK[0]["content"], max_output_tokens=12, temperature=0)
    assert made.output_text == expected
    assert made.status == "incomplete"
    assert made.incomplete_details.reason == "max_output_tokens"
    assert [item.status for item in made.output] == ["incomplete"]
    assert (made.temperature, made.top_p) == (0, DEFAULT.top_p)
    kinds, text, ended = [], "", []
    with client.responses.stream(
        model="reference", input=TALK[0]["content"], max_output_tokens=12, temperature=0
    ) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.output_item.done":
                ended.append(event.item.status)
    assert text == expected
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.incomplete"
    assert ended == ["incomplete"]


def test_embeddings_are_of_length_one_and_differ(running: Running, client: Any) -> None:
    made = client.embeddings.create(model="reference", input=["The whale", "A ship", "The whale"])
    first, second, third = (np.array(each.embedding) for each in made.data)
    assert first.shape == (running.model.config.hidden,)
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(first, third, atol=1e-6)
    assert float(first @ second) < 0.999


def test_models_and_tokens(running: Running, client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["reference"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"messages": []}, "expected at least one"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "unknown role 'pirate'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more"),
        ({"temperature": -1}, "temperature"),
        ({"n": 99}, "expected 1 to 16 answers"),
        ({"extra_body": {"frobnicate": 1}}, "frobnicate"),
        ({"logit_bias": {"9999999": 1}}, "9999999"),
        ({"messages": [{"role": "user", "content": "whale " * 2000}]}, "tokens"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}}, "schema"),
    ],
)
def test_wrong_requests_are_refused_with_the_reason(client: Any, words: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(**{"model": "reference", "messages": TALK, "max_tokens": 4, **words})


@pytest.mark.parametrize(
    ("words", "param", "said"),
    [
        ({"frobnicate": 1}, "frobnicate", "the server does not know this field"),
        ({"modalities": ["audio"]}, "modalities", "answers texts"),
        ({"max_tokens": 0}, "max_tokens", "1 or more"),
        ({"max_tokens": "5"}, "max_tokens", "found '5'"),
        ({"stream": "yes"}, "stream", "found 'yes'"),
        ({"seed": 1e30}, "seed", "expected a valid integer, found 1e"),
        ({"n": 99}, "n", "expected 1 to 16"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "messages", "pirate"),
        ({"regex": "(a"}, "regex", "unclosed group"),
        ({"messages": TALK, "response_format": {"type": "x"}}, "response_format", "unknown type"),
    ],
)
def test_errors_name_the_field(client: Any, words: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={"messages": TALK, "max_tokens": 4, **words}, cast_to=object)
    assert caught.value.param == param
    assert said in str(caught.value)


def test_fields_that_are_null_are_not_given(client: Any) -> None:
    body = {"messages": TALK, "max_tokens": 2, "prediction": None, "stream": None, "modalities": ["text"]}
    found: Any = client.post("/chat/completions", body=body, cast_to=object)
    assert found["usage"]["completion_tokens"] == 2
