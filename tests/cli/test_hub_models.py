"""Every command on a model of the hub, by the names that llama.cpp and Ollama take; the hub is on this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitsmith
from tests.cli.command import Command
from tests.fake_hub import serving
from tests.tiny import make_folder


class Hub:
    """The command line in a process of its own, with the hub's cache in a temporary folder."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env, self.folder = env, folder

    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bitsmith", *map(str, words)]
        place = self.folder.parent
        return subprocess.run(
            command, capture_output=True, text=True, env=self.env, cwd=place, timeout=120, check=False
        )

    def works(self, *words: object) -> str:
        """What it prints; it must succeed."""
        done = self(*words)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    tiny = make_folder(tmp_path / "tiny")
    with serving(tmp_path) as (handler, env):
        for to in ("q8_0", "f16"):
            bitsmith.quantize(tiny, to=to, out=handler.folder / f"tiny-{to.upper()}.gguf")
        env["PYTHONPATH"] = str(Path(bitsmith.__file__).parents[1])
        yield Hub(env, handler.folder)


def test_pull_list_run_and_rm(hub: Hub) -> None:
    pulled = hub("pull", "owner/name")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stderr == "Note: owner/name holds several GGUF files: taking Q8_0. Others: F16\n"
    assert pulled.stdout.splitlines()[-1] == "Run it: bitsmith run owner/name:Q8_0"
    again = json.loads(hub.works("pull", "https://huggingface.co/owner/name:f16", "--json"))
    assert (again["name"], again["quantization"]) == ("owner/name:F16", "F16")
    assert again["size"] == (hub.folder / "tiny-F16.gguf").stat().st_size
    listed = json.loads(hub.works("list", hub.folder, "--json"))
    assert [each["name"] for each in listed if each["in_cache"]] == ["owner/name:F16", "owner/name:Q8_0"]
    assert hub.works("run", "owner/name:q8_0", "--prompt", "Once", "-n", 3, "--seed", 1).strip()
    assert "freed" in hub.works("rm", "owner/name:F16", "--yes")
    assert [each["name"] for each in json.loads(hub.works("list", "--json")) if each["in_cache"]] == ["owner/name:Q8_0"]
    wrong = hub("pull", "owner/name:Q4_K_M")
    assert (wrong.returncode, "it has F16, Q8_0" in wrong.stderr) == (1, True)


def test_names_with_a_quantization_reach_every_command(hub: Hub) -> None:
    name = "hf.co/owner/name:q8_0"
    assert json.loads(hub.works("inspect", name, "--json"))["quantization"] == "Q8_0"
    assert json.loads(hub.works("plan", name, "--memory", "8GB", "--json"))["formats"]
    assert "tiny-Q4_0.gguf" in hub.works("quantize", "owner/name:f16", "--to", "q4_0", "--dry-run")
    words = ("eval", name, "--against", "owner/name:F16", "--context", 64, "--max-windows", 1, "--json")
    assert json.loads(hub.works(*words))["divergence"]
    assert hub.works("bench", name, "--prompt", 4, "--gen", 2, "--repeat", 1, "--json")
    assert "tiny-bf16" in hub.works("convert", name, "--to", "bf16", "--dry-run")


@pytest.mark.parametrize("name", ["a/b:../../x", "hf.co/a", "owner/name:../x.gguf", "a/b:nothing.gguf", "nobody/x"])
@pytest.mark.parametrize("command", ["inspect", "pull", "plan", "run", "eval", "bench", "convert"])
def test_wrong_names_end_in_one_clear_line(bitsmith_command: Command, command: str, name: str) -> None:
    result = bitsmith_command(command, name)
    assert result.code in (1, 2)
    assert result.err.startswith("Error: ")
    assert "Traceback" not in result.err


def test_a_folder_of_the_hub_gives_a_file_with_the_repositorys_name(hub: Hub) -> None:
    for path in hub.folder.iterdir():
        path.unlink()
    for path in (hub.folder.parent / "tiny").iterdir():
        (hub.folder / path.name).write_bytes(path.read_bytes())
    assert "Run it: bitsmith run owner/name" in hub.works("pull", "owner/name")
    hub.works("quantize", "owner/name", "--to", "q8_0")
    made = hub.folder.parent / "name-Q8_0.gguf"
    assert bitsmith.inspect(made).metadata["general.name"] == "name"
    snapshot = next((Path(hub.env["HF_HOME"]) / "hub" / "models--owner--name" / "snapshots").iterdir())
    assert "name-Q4_0.gguf" in hub.works("quantize", snapshot, "--to", "q4_0", "--dry-run")


def test_an_interrupted_pull_leaves_nothing_half(hub: Hub) -> None:
    name = "big-Q4_0.gguf"
    with (hub.folder / name).open("wb") as file:
        file.truncate(50 << 20)
    words = [sys.executable, "-m", "bitsmith", "pull", "owner/name:q4_0"]
    process = subprocess.Popen(words, env=hub.env, cwd=hub.folder.parent, stderr=subprocess.PIPE, text=True)
    blobs = Path(hub.env["HF_HOME"]) / "hub" / "models--owner--name" / "blobs"
    while process.poll() is None and not any(path.stat().st_size for path in blobs.glob("*.incomplete")):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    told = process.stderr.read()
    assert (process.wait(), "Interrupted; the files that are complete stay" in told) == (130, True), told
    assert "Traceback" not in told
    assert [each for each in json.loads(hub.works("list", "--json")) if each["in_cache"]] == []
