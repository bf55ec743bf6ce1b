"""A person talks with a model on a terminal."""

from __future__ import annotations

import json
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import Terminal
from tests.tiny import make_folder

CONTEXT = 16384
PASTE = (
    "".join(f'line {number}: it\'s a "quoted" <text>,\tand $HOME `too` \\\n' for number in range(240))[:9_994]
    + "\nlast"
)
UP, CTRL_C, CTRL_D, ALT_ENTER = "\x1b[A", "\x03", "\x04", "\x1b\r"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends an answer: it has no end token."""
    folder = make_folder(tmp_path_factory.mktemp("chat") / "tiny", max_position_embeddings=CONTEXT)
    for name in ("generation_config.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if "eos" not in k}))
    path = folder / "tokenizer.json"
    path.write_text(path.read_text("utf-8").replace("<|endoftext|>", "<|start|>"), "utf-8")
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def chat(model: Path, state: Path) -> Iterator[Terminal]:
    """A session that waits for the first message; answers have 8 tokens."""
    with Terminal("chat", model, "-n", 8, "--seed", 1, XDG_STATE_HOME=str(state)) as terminal:
        terminal.prompt()
        yield terminal


def say(terminal: Terminal, text: str) -> str:
    """Send one line, wait for the next prompt; what was shown."""
    terminal.send(f"{text}\r")
    return terminal.prompt()


def saved(terminal: Terminal, path: Path) -> list[dict[str, Any]]:
    """The conversation so far, through /save."""
    path.unlink(missing_ok=True)
    assert f"saved {path}" in say(terminal, f"/save {path}")
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def test_a_long_paste_is_one_message(chat: Terminal, tmp_path: Path) -> None:
    assert len(PASTE) >= 9_999
    chat.paste(PASTE)
    chat.send("\r")
    chat.prompt()
    messages = saved(chat, tmp_path / "talk.json")
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"] == PASTE


def test_several_lines_and_history(chat: Terminal, model: Path, state: Path, tmp_path: Path) -> None:
    chat.send(f"one{ALT_ENTER}two\\\rthree\r")
    chat.prompt()
    say(chat, "four")
    chat.send(UP + UP + UP)  # into the three lines, up to the first
    chat.send(f"{UP}{UP}\x1b[H")
    chat.send("zero \r")
    chat.prompt()
    users = [m["content"] for m in saved(chat, tmp_path / "talk.json") if m["role"] == "user"]
    assert users == ["one\ntwo\nthree", "four", "zero one\ntwo\nthree"]
    chat.send(CTRL_D)
    assert chat.leave() == 0
    file = state / "bitsmith" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with Terminal("chat", model, "-n", 2, XDG_STATE_HOME=str(state)) as later:  # the next session knows them
        later.prompt()
        later.send(f"{UP}{UP}\r")  # the first is /save
        later.prompt()
        assert saved(later, tmp_path / "later.json")[0]["content"] == "zero one\ntwo\nthree"


def test_no_history_leaves_no_file(model: Path, state: Path, tmp_path: Path) -> None:
    with Terminal("chat", model, "-n", 2, "--no-history", XDG_STATE_HOME=str(state)) as terminal:
        terminal.prompt()
        say(terminal, "one")
        terminal.send(f"{UP}\r")  # in the session itself there is one
        terminal.prompt()
        assert [m["content"] for m in saved(terminal, tmp_path / "talk.json")][::2] == ["one", "one"]
    assert not state.exists()


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(model: Path, state: Path, tmp_path: Path) -> None:
    with Terminal("chat", model, "-n", -1, "--temp", 0, XDG_STATE_HOME=str(state)) as terminal:
        assert "the model names no end token" in terminal.prompt()
        terminal.send("go on\r")
        terminal.answer()
        terminal.send(CTRL_C)
        assert "(stopped)" in terminal.prompt()
        messages = saved(terminal, tmp_path / "talk.json")
        assert messages[0] == {"role": "user", "content": "go on"}
        assert messages[1]["content"]
        terminal.send(CTRL_C)  # with nothing to stop, it does not leave
        assert "Ctrl-D or /exit leaves." in terminal.prompt()
        assert saved(terminal, tmp_path / "talk.json") == messages
        terminal.send(f"half a message{CTRL_C}")
        terminal.prompt()
        assert saved(terminal, tmp_path / "talk.json") == messages
        terminal.send(CTRL_D)
        assert terminal.leave() == 0


def test_commands(chat: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    assert "nothing was said yet" in say(chat, "/regen")
    say(chat, "one")
    say(chat, "two")
    first = saved(chat, file)
    say(chat, "/regen")
    second = saved(chat, file)
    assert second[:3] == first[:3]
    assert second[3]["content"] != first[3]["content"]
    assert "taken back: two" in say(chat, "/undo")
    assert saved(chat, file) == first[:2]
    assert "system message: be brief" in say(chat, "/system be brief")
    assert saved(chat, file) == [{"role": "system", "content": "be brief"}, *first[:2]]
    assert "no system message" in say(chat, '/system ""')
    shown = say(chat, "/stats")
    assert "2 messages; context of 16384 tokens" in shown
    assert re.search(r"generation: 8 tokens, [\d.]+ tokens/s", shown)
    shown = say(chat, "/help")
    assert all(f"\n{name} " in shown for name in ("/help", "/regen", "/undo", "/system", "/save", "/stats", "/reset"))
    assert "Alt-Enter" in shown
    assert "unknown command /regne. Did you mean /regen?" in say(chat, "/regne")
    assert "forgotten" in say(chat, "/reset")
    assert saved(chat, file) == []
    chat.send("/exit\r")
    assert chat.leave() == 0


def test_saving(chat: Terminal, tmp_path: Path) -> None:
    say(chat, "/etc/hosts is a file")
    chats = tmp_path / "talk.jsonl"
    say(chat, f"/save {chats}")
    assert json.loads(chats.read_text())["messages"][0] == {"role": "user", "content": "/etc/hosts is a file"}
    say(chat, " /help")  # a space before it makes it a message
    say(chat, f"/save {chats}")  # its own file, again
    assert json.loads(chats.read_text())["messages"][2]["content"] == "/help"
    other = tmp_path / "other.md"
    other.write_text("mine")
    assert "exists" in say(chat, f"/save {other}")
    assert other.read_text() == "mine"
    text = tmp_path / "talk.md"
    say(chat, f"/save {text}")
    assert text.read_text().startswith("## user\n\n/etc/hosts is a file\n\n## assistant\n\n")
    assert "Error: " in say(chat, f"/save {tmp_path}/none/talk.md")
    assert "give a file" in say(chat, "/save")


def test_bytes_that_are_not_utf8_are_replaced(chat: Terminal, tmp_path: Path) -> None:
    chat.send_bytes(b"caf\xe9 \x1b[200~\xff\x1b[201~\r")
    chat.prompt()
    assert saved(chat, tmp_path / "talk.json")[0]["content"] == "caf\ufffd \ufffd"


def test_a_message_too_long_erases_nothing(model: Path, state: Path, tmp_path: Path) -> None:
    with Terminal("chat", model, "-n", 8, "-c", 256, XDG_STATE_HOME=str(state)) as terminal:
        terminal.prompt()
        say(terminal, "one")
        before = saved(terminal, tmp_path / "talk.json")
        terminal.paste(PASTE)
        terminal.send("\r")
        assert "say it shorter" in terminal.prompt()
        assert saved(terminal, tmp_path / "talk.json") == before


def test_a_signal_to_end_ends_it(chat: Terminal) -> None:
    chat.process.send_signal(signal.SIGTERM)
    assert chat.leave() == 128 + signal.SIGTERM
