"""What each runtime gets, what is refused, and how answers are judged; no runtime is started here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import bitsmith
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.handover.checking import check_configuration, check_file, without_template
from bitsmith.handover.child import Place, Told, ask, find_place
from bitsmith.handover.handing import HandedOver
from bitsmith.handover.original import bits_of, check_same_model, most_lost
from bitsmith.handover.probes.child import ENDED, choices
from bitsmith.handover.questions import CHATS, Answers, Rendered, written_call
from bitsmith.handover.runtime import HALF
from bitsmith.handover.runtimes import RUNTIMES, find_runtime
from bitsmith.handover.subject import open_subject
from bitsmith.handover.verdict import Check, compare
from tests.cli.command import Command
from tests.tiny import with_tools


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return bitsmith.quantize("reference", to="q4_0", out=tmp_path / "ref.gguf").out


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_says_how_it_is_started(name: str, tmp_path: Path, gguf: Path) -> None:
    runtime = find_runtime(name)
    model = gguf
    if "gguf" not in runtime.containers:
        model = bitsmith.convert("reference", to="bf16", out=tmp_path / "floats").out
    found = bitsmith.hand_over(model, runtime=name, out=tmp_path / "out")
    assert str(model.name) in found.command or str(tmp_path) in found.command or "bitsmith/ref" in found.command
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["runtime"] == name
    assert receipt["good"] is None
    assert str(tmp_path) not in (tmp_path / "out" / "receipt.json").read_text()
    assert all((tmp_path / "out" / file).is_file() for file in found.files)
    with pytest.raises(UsageError, match="exists"):
        bitsmith.hand_over(model, runtime=name, out=tmp_path / "out")
    bitsmith.hand_over(model, runtime=name, out=tmp_path / "out", force=True)


def test_the_program_for_transformers_finds_the_model_from_its_own_place(tmp_path: Path) -> None:
    model = bitsmith.convert("reference", to="bf16", out=tmp_path / "floats").out
    bitsmith.hand_over(model, runtime="transformers", out=model / "start")
    program = (model / "start" / "run.py").read_text()
    assert str(tmp_path) not in program
    line = next(line for line in program.splitlines() if line.startswith("path = "))
    known: dict[str, Any] = {"Path": Path, "__file__": str(model / "start" / "run.py")}
    exec(line, known)
    assert known["path"] == str(model.resolve())


def test_ollama_gets_the_template_the_stops_and_the_context(gguf: Path, tmp_path: Path) -> None:
    bitsmith.hand_over(gguf, runtime="ollama", out=tmp_path / "out")
    lines = (tmp_path / "out" / "Modelfile").read_text()
    assert lines.startswith(f"FROM {gguf}\n")
    bitsmith.hand_over(gguf, runtime="ollama", out=gguf.parent)  # they lie together, and may be moved together
    assert (gguf.parent / "Modelfile").read_text().startswith(f"FROM ./{gguf.name}\n")
    assert '{{ if eq .Role "system" }}{{ .Content }}' in lines
    assert 'PARAMETER stop "<|endoftext|>"' in lines
    assert "PARAMETER num_ctx 1024" in lines


def test_lm_studio_gets_its_folders(gguf: Path, tmp_path: Path) -> None:
    bitsmith.hand_over(gguf, runtime="lm-studio", out=tmp_path / "out")
    placed = tmp_path / "out" / "bitsmith" / "ref" / "ref.gguf"
    assert placed.read_bytes() == gguf.read_bytes()


@pytest.mark.parametrize(
    ("to", "runtime", "says"),
    [
        ("q4_0", "vllm", r"vLLM does not read GGUF files\. .*--to compressed/w4a16"),
        ("q4_0", "tensorrt-llm", r"--to modelopt/fp8 --calibration default`"),
        ("native/nf4", "llama.cpp", r"does not read native folders\. .*--to q4_k_m"),
        ("gptq/int3", "vllm", r"only symmetric gptq of 4 or 8 bits"),
        ("bnb/nf4", "mlx", r"--to mlx/4bit"),
    ],
)
def test_a_file_that_the_runtime_cannot_hold_is_refused(tmp_path: Path, to: str, runtime: str, says: str) -> None:
    made = bitsmith.quantize("reference", to=to, out=tmp_path / ("m.gguf" if to == "q4_0" else "m")).out
    with pytest.raises(UnsupportedError, match=says):
        bitsmith.hand_over(made, runtime=runtime, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_runtime_that_is_not_there_is_named_with_what_to_install(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no such program"):
        bitsmith.hand_over(gguf, runtime="llama.cpp", out=tmp_path / "out", check=True, python=str(tmp_path / "python"))
    runtime = find_runtime("vllm")
    assert runtime.probing is not None
    absent = replace(runtime, probing=replace(runtime.probing, package="no_such_package"))
    with pytest.raises(UnsupportedError, match=r"was not found.*pip install vllm"):
        find_place(absent, None)
    with pytest.raises(UnsupportedError, match="cannot be checked"):
        find_place(find_runtime("tensorrt-llm"), None)
    with pytest.raises(UsageError, match=r"unknown; expected llama\.cpp"):
        find_runtime("word")


def test_options_of_a_check_without_a_check(bitsmith_command: Command, gguf: Path) -> None:
    done = bitsmith_command("handover", str(gguf), "--for", "llama.cpp", "--python", "x")
    assert done.code == 2
    assert "--python and --original are for --check" in done.err


def test_a_runtime_that_dies_or_hangs_is_an_answer(tmp_path: Path) -> None:
    import sys

    runtime = find_runtime("transformers")
    assert runtime.probing is not None
    died = tmp_path / "died.py"
    died.write_text("import os, sys\nprint('last words', file=sys.stderr)\nsys.stderr.flush()\nos._exit(3)\n")
    hung = tmp_path / "hung.py"
    hung.write_text("import time\ntime.sleep(600)\n")
    for file, says in ((died, "ended with code 3; its last words: last words"), (hung, "took more than 2 s")):
        broken = replace(runtime, probing=replace(runtime.probing, file=str(file)))
        told = ask(broken, Place(sys.executable), {"chats": []}, seconds=2 if file == hung else 30)
        assert says in told.error
        assert not told.done


OURS = Answers(
    {"one message": Rendered("<u>hi", (1, 2)), "tools": Rendered("<u>hi", (1, 2))},
    (1, 2, 3, 4),
    2,
    np.log(np.array([[0.1, 0.1, 0.1, 0.6, 0.1]] * 2 + [[0.1, 0.1, 0.1, 0.1, 0.6]], np.float32)),
    frozenset({0}),
)


def answered(**changes: Any) -> Told:
    top: list[dict[str, float]] = [{str(i): float(v) for i, v in enumerate(row)} for row in OURS.logs]
    chats = {name: {"text": each.text, "ids": list(each.ids)} for name, each in OURS.chats.items()}
    return Told(**({"chats": chats, "top": top, "greedy": [3, 4], "done": True} | changes))


def failed(told: Told) -> list[str]:
    return [check.name for check in compare(OURS, told, HALF) if check.passed is False]


def test_answers_are_judged_by_name() -> None:
    assert failed(answered()) == []
    other = {"one message": {"text": "<user>hi", "ids": [1, 2]}, "tools": {"text": "<u>hi", "ids": [1, 2]}}
    assert "template: one message" in failed(answered(chats=other))
    refused = {"one message": {"refused": "no"}, "tools": {"text": "<u>hi", "ids": [1, 2]}}
    assert "template: one message" in failed(answered(chats=refused))
    other = {name: {"text": each.text, "ids": [1, 9]} for name, each in OURS.chats.items()}
    assert "tokens" in failed(answered(chats=other))
    swapped = [{str(i): float(v) for i, v in enumerate(row[::-1])} for row in OURS.logs]
    assert "log probabilities" in failed(answered(top=swapped))
    assert "log probabilities" in failed(answered(top=[]))
    assert "greedy text" in failed(answered(greedy=[1, 1]))
    assert failed(answered(error="it broke", done=False)) == ["loading"]


def test_the_questions_are_plain_json() -> None:
    assert json.loads(json.dumps([dict(chat) for chat in CHATS]))


def greedy(ours: Answers, told: Told) -> Check:
    return next(check for check in compare(ours, told, HALF) if check.name == "greedy text")


def test_where_tokens_are_as_likely_as_each_other_the_comparison_goes_on() -> None:
    even = replace(OURS, logs=np.log(np.array([[0.2] * 5, [0.05, 0.05, 0.05, 0.05, 0.8], [0.2] * 5], np.float32)))
    found = greedy(even, answered(greedy=[2, 4]))
    assert (found.passed, found.figures["as_likely"], found.figures["same"]) == (True, 1, 1)
    assert greedy(even, answered(greedy=[2, 3])).passed is False
    assert greedy(even, answered(greedy=[2, ENDED])).passed is False
    assert greedy(even, answered(greedy=[ENDED, 4])).passed is True
    assert greedy(even, answered(greedy=[])).passed is False
    flat = replace(even, logs=np.log(np.full((3, 5), 0.2, np.float32)))
    assert greedy(flat, answered(greedy=[2, 1])).passed is None


def test_a_runtime_goes_on_from_our_token() -> None:
    class Asked:
        def greedy(self, ids: list[int], new: int) -> list[int]:
            assert new == 7 - len(ids)
            text = [1, 2, 3, 9, 5] if 4 not in ids else [1, 2, 3, 4, 5]  # says 9 for 4, and ends one too early
            return text[len(ids) : len(ids) + new]

    assert choices(Asked(), [1, 2, 3, 4, 5, 6, 7], 2) == [3, 9, 5, ENDED, ENDED]


def test_a_call_as_the_template_writes_it(tmp_path: Path) -> None:
    text = written_call(open_subject(with_tools(tmp_path / "tools")).tokenizer)
    assert text == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert written_call(open_subject("reference").tokenizer) == ""


def test_a_call_that_the_runtime_finds_in_a_text() -> None:
    chats = {**OURS.chats, "tools": Rendered("<t><u>hi", (1, 2))}
    ours = replace(OURS, chats=chats)
    wanted = {"name": "get_weather", "arguments": {"city": "Paris"}}

    def judged(parsed: dict[str, Any]) -> bool | None:
        found = compare(ours, answered(parsed_call=parsed), HALF)
        return next(check.passed for check in found if check.name == "tool call")

    assert judged({"calls": [wanted]}) is True
    assert judged({"calls": [{**wanted, "arguments": '{"city": "Paris"}'}]}) is True
    assert judged({"absent": "no parser"}) is None
    for wrong in (
        {"calls": []},
        {"calls": [{**wanted, "arguments": "{"}]},
        {"failed": "x"},
        {"calls": [wanted, wanted]},
    ):
        assert judged(wrong) is False


def test_a_hint_names_the_model_where_it_is_known(tmp_path: Path, gguf: Path) -> None:
    floats = bitsmith.convert("reference", to="bf16", out=tmp_path / "my floats").out
    with pytest.raises(UnsupportedError) as caught:
        bitsmith.hand_over(floats, runtime="llama.cpp", out=tmp_path / "out")
    assert f"`bitsmith quantize '{floats.resolve()}' --to q4_k_m`" in str(caught.value)
    with pytest.raises(UnsupportedError, match="where MODEL is the folder or hub name that this file was made from"):
        bitsmith.hand_over(gguf, runtime="vllm", out=tmp_path / "out")


def with_checks(*checks: Check) -> HandedOver:
    place = Path("x")
    return HandedOver("vllm", place, place, "", (), (), checks, {"vllm": "1"})


def test_weights_that_nothing_was_compared_with_are_told() -> None:
    loads, unknown = Check("loading", True), Check("file", None, "no manifest")
    assert with_checks(loads, Check("file", True)).verdict == "checked with vllm 1"
    assert with_checks(loads, unknown, Check("original: divergence", True)).verdict == "checked with vllm 1"
    bare = with_checks(loads, unknown)
    assert "could not be checked against anything" in bare.verdict
    assert "`--original`" in bare.to_dict()["verdict"]
    assert bare.to_dict()["weights_compared_with"] == []
    assert with_checks(Check("loading", False), unknown).verdict == "not good: loading"
    assert with_checks().verdict == ""


@pytest.mark.parametrize("manifest", [True, False])
def test_two_tensors_that_changed_places_are_found_by_the_manifest_alone(tmp_path: Path, manifest: bool) -> None:
    """Both sides read the same file, so that their answers agree."""
    made = bitsmith.quantize("reference", to="compressed/w4a16", out=tmp_path / "m").out
    file = made / "model.safetensors"
    with safe_open(file, "numpy") as held:
        tensors, notes = {name: held.get_tensor(name) for name in held.keys()}, held.metadata()  # noqa: SIM118
    one, two = (f"model.layers.{layer}.self_attn.q_proj.weight_packed" for layer in (0, 2))
    tensors[one], tensors[two] = tensors[two], tensors[one]
    save_file(tensors, file, metadata=notes if manifest else {"format": "pt"})
    found = check_file(open_subject(made))
    assert found.passed is (False if manifest else None)


def test_ollamas_template_is_not_the_one_that_llama_cpp_shows() -> None:
    ollama, studio = find_runtime("ollama"), find_runtime("lm-studio")
    assert ollama.started == "llama.cpp (the engine of Ollama)"
    assert find_runtime("llama.cpp").started == "llama.cpp"
    for name in ("template: tools", "template", "tool call"):
        found = without_template(Check(name, True), ollama)
        assert found.passed is None
        assert "Ollama uses the Modelfile's template" in found.reason
        assert without_template(Check(name, True), studio).passed
    assert without_template(Check("log probabilities", False), ollama).passed is False


def test_what_is_done_next_stands_behind_the_command(bitsmith_command: Command, gguf: Path, tmp_path: Path) -> None:
    done = bitsmith_command("handover", str(gguf), "--for", "ollama", "-o", str(tmp_path / "out"))
    assert done.code == 0
    assert done.out.index("ollama create") < done.out.index("then `ollama run")


@pytest.mark.parametrize(("to", "least", "most"), [("q8_0", 8, 9), ("q4_0", 4, 5), ("q2_k", 2, 3.5)])
def test_a_file_may_lose_as_much_as_its_bits_say(tmp_path: Path, to: str, least: float, most: float) -> None:
    made = bitsmith.quantize("reference", to=to, out=tmp_path / "m.gguf").out
    assert least <= bits_of(open_subject(made)) <= most
    assert most_lost(8.5) < most_lost(5.5) < most_lost(4.5)


def test_the_architecture_and_the_end_tokens_are_the_originals(tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to="mlx/4bit", out=tmp_path / "m").out
    subject, original = open_subject(made), open_subject("reference")
    assert 4 <= bits_of(subject) <= 5
    ends = subject.tokenizer.end_ids
    assert all(check.passed for check in check_same_model(subject, original, ends))
    assert [check.passed for check in check_configuration(subject)] == [True]
    assert not check_same_model(subject, original, frozenset({7}))[1].passed
    config = json.loads((made / "config.json").read_text())
    del config["quantization_config"]
    (made / "config.json").write_text(json.dumps({**config, "rope_theta": 123.0, "rms_norm_eps": 0.5}))
    changed = open_subject(made)
    assert not check_configuration(changed)[0].passed
    assert "rms_norm_eps is 0.5" in check_same_model(changed, original, ends)[0].reason


def test_a_gguf_file_has_its_originals_end_token(gguf: Path) -> None:
    subject = open_subject(gguf)
    assert [c.passed for c in check_same_model(subject, open_subject("reference"), subject.tokenizer.end_ids)] == [True]
