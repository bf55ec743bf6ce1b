"""`tune qlora`, from options to an adapter that peft loads."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("peft", reason="peft is not installed: pip install 'bitsmith[tune]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'bitsmith[tune]'")

from safetensors.torch import load_file

import bitsmith
import bitsmith.torch
from bitsmith.containers.claim import Claim
from bitsmith.containers.output_names import OutputNames
from bitsmith.errors import FileError, TensorError, UnsupportedError, UsageError
from bitsmith.models.adapter import check_base
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.tune.adapters import adapted_modules
from tests.cli.command import Command
from tests.tiny import REFERENCE, make_folder
from tests.torch_modules.models import BASE
from tests.tune.data import QUICK, sums


def tuned(base: Path, out: Path, **changes: Any) -> Any:
    data = sums(out.parent / "sums.jsonl")
    return bitsmith.tune_qlora(base, **({"data": data, "out": out} | QUICK | changes))


def test_an_adapter_learns_and_loads_in_peft(tiny: Path, tmp_path: Path) -> None:
    result = tuned(tiny, tmp_path / "a", eval_data=tmp_path / "sums.jsonl", steps=12, to="gguf-lora")
    assert result.loss_after < result.loss_before - 1
    from peft import PeftModel

    base = bitsmith.torch.from_pretrained(tiny, "nf4-dq", dtype="float32")
    loaded = PeftModel.from_pretrained(base, tmp_path / "a").eval()
    state = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert len(state) == 2 * len(result.modules) == 28
    record = json.loads((tmp_path / "a" / "bitsmith.json").read_text())
    ids = torch.tensor([[5, 77, 1200, 41]])
    with torch.no_grad():
        assert torch.isfinite(loaded(ids).logits).all()
    assert record["loss_after"] == result.loss_after
    assert [line for line in result.history if "eval_loss" in line]
    assert tmp_path / "a" / "adapter.gguf" in result.files
    assert (tmp_path / "a" / "loss.png").exists() == (len(result.files) > 1)


def test_codes_take_no_adapter_in(tiny: Path, tmp_path: Path) -> None:
    from bitsmith.tune.adapters import Shape, with_adapters

    base = bitsmith.torch.from_pretrained(tiny, "nf4", dtype="float32")
    model = with_adapters(base, adapted_modules(base, ["q_proj"]), Shape(4, 8.0, 0.0, ("q_proj",)), str(tiny))
    with pytest.raises(UnsupportedError, match="bitsmith merge"):
        model.merge_adapter()


@pytest.mark.parametrize("options", [{"packing": True}, {"format": "bf16"}, {"format": "q4_0"}])
def test_variants_train(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    result = tuned(tiny, tmp_path / "a", **options)
    losses = [line["loss"] for line in result.history if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_base_that_is_quantized_already(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nf4"
    bitsmith.quantize(tiny, to="native/nf4", out=folder)
    result = tuned(folder, tmp_path / "a", steps=2)
    assert result.plan.format == ""
    known = json.loads((tmp_path / "a" / "bitsmith.json").read_text())["base_tensors"]
    assert len(known) == 14
    assert check_base(open_checkpoint(tiny), known, tmp_path / "a")  # what the folder was made from
    with pytest.raises(UsageError, match="quantized already"):
        tuned(folder, tmp_path / "b", format="nf4")


def test_experts_stay_frozen(tmp_path: Path) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = BASE | {"vocab_size": 4096, "max_position_embeddings": 256}
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
    folder = tmp_path / "moe"
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape, head_dim=16, mlp_only_layers=[], **moe)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(REFERENCE / name, folder / name)
    result = tuned(folder, tmp_path / "a", steps=8)
    assert {name.rpartition(".")[2] for name in result.modules} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    losses = [line["loss"] for line in result.history if "loss" in line]
    assert losses[-1] < losses[0]
    with pytest.raises(UsageError, match="fused experts get no adapters"):
        tuned(folder, tmp_path / "b", targets=["down_proj"])


def test_checkpointing_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    states = []
    for name, checkpointing in (("a", True), ("b", False)):
        tuned(tiny, tmp_path / name, checkpointing=checkpointing)
        states.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_a_killed_run_goes_on_to_the_same_adapter(tiny: Path, tmp_path: Path) -> None:
    options = {"steps": 6, "save_every": 2, "dropout": 0.1, "threads": 2}  # sums of floats depend on their number
    tuned(tiny, tmp_path / "whole", **options)
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "import bitsmith\n"
        "def report(p):\n"
        "    if p.stage == 'train' and p.done == 5:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"bitsmith.tune_qlora({str(tiny)!r}, data={str(tmp_path / 'sums.jsonl')!r}, out={str(tmp_path / 'cut')!r}, "
        f"report=report, **{QUICK | options!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-6"
    half.mkdir()  # as if it had been killed while it wrote this one
    with pytest.raises(UsageError, match="was started with rank 4, and now it is 8"):
        tuned(tiny, tmp_path / "cut", resume=True, **(options | {"rank": 8}))
    tuned(tiny, tmp_path / "cut", resume=True, **options)
    whole, cut = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_one_run_at_a_time(tiny: Path, tmp_path: Path) -> None:
    tuned(tiny, tmp_path / "a", steps=1)
    claim = Claim(OutputNames.of(tmp_path / "a", as_folder=True))
    for words in ({"resume": True}, {"force": True}):
        with pytest.raises(UsageError, match="another run is writing this output"):
            tuned(tiny, tmp_path / "a", steps=1, **words)
    claim.release()
    tuned(tiny, tmp_path / "a", steps=1, resume=True)
    assert not list(tmp_path.glob(".a.*"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2033088 vs 2032980"),
    ],
)
def test_a_disk_that_is_full(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from transformers import Trainer

    options = {"steps": 4, "save_every": 1, "threads": 2}
    tuned(tiny, tmp_path / "whole", **options)
    saves, step = Trainer._save_optimizer_and_scheduler, count(1)

    def full(self: Trainer, folder: str) -> None:
        if next(step) == 3:
            (Path(folder) / "optimizer.pt").write_bytes(b"half")
            raise error
        saves(self, folder)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    wanted = (
        r"checkpoint of step 3 was not written .* takes about .* are free there\. checkpoint-2 is whole: .* resume="
    )
    with pytest.raises(FileError, match=wanted):
        tuned(tiny, tmp_path / "cut", **options)
    checkpoints = tmp_path / "cut" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-1", "checkpoint-2", "run.json"]
    tuned(tiny, tmp_path / "cut", resume=True, **options)
    whole, cut = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match=r"in step \d+: .* kept in .*last-good"):
        tuned(tiny, tmp_path / "a", learning_rate=1e30, warmup=0.0, schedule="constant", steps=6)
    state = load_file(tmp_path / "a" / "last-good" / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


def test_bad_input(tiny: Path, tmp_path: Path, bitsmith_command: Command) -> None:
    data, out = sums(tmp_path / "sums.jsonl"), tmp_path / "a"
    words = ("tune", "qlora", tiny, "--data", data, "--out", out, "--steps", 1, "--batch", 1, "--accumulate", 1)
    assert "--targets q_porj matches no linear layer; did you mean q_proj" in bitsmith_command.fails(
        2, *words, "--targets", "q_porj", "--quiet"
    )
    assert "--force" in bitsmith_command.fails(2, *words)
    assert "takes at most 256 tokens" in bitsmith_command.fails(2, *words, "--force", "--context", 512)
    assert "--batch 0: expected 1 or more" in bitsmith_command.fails(2, *words, "--batch", 0)
    said = bitsmith_command.fails(2, *words, "--force", "--format", "nf5")
    assert "is not a format" in said
    assert "bf16" in said
    assert "without a container, int4" in bitsmith_command.fails(2, *words, "--force", "--format", "awq/int4")
    assert "give one of them" in bitsmith_command.fails(2, *words, "--epochs", 2)
    assert "is the output head" in bitsmith_command.fails(2, *words, "--force", "--targets", "lm_head")
    assert "holds no run" in bitsmith_command.fails(2, *words[:6], tmp_path / "none", "--resume")
    assert "needs bitsandbytes" in bitsmith_command.fails(2, *words, "--force", "--optimizer", "adamw-8bit")


def test_the_base_lies_in_no_mapped_file(tiny: Path) -> None:
    from bitsmith.tune.base import load_base, open_base

    model = load_base(open_base(tiny, "nf4", None), dtype="bfloat16", device="cpu")
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in model.parameters())


def test_the_plan_counts_the_longest_row(tiny: Path, tmp_path: Path) -> None:
    short = tuned(tiny, tmp_path / "a", steps=1, context=64)
    long = tuned(tiny, tmp_path / "b", steps=1, context=256)
    assert short.plan.memory == long.plan.memory > 0
    assert short.memory > 0


def test_what_is_read_is_not_deleted(tiny: Path, tmp_path: Path) -> None:
    tuned(tiny, tmp_path / "a", steps=1)
    data = sums(tmp_path / "a" / "mine.jsonl")
    with pytest.raises(UsageError, match=r"holds .*mine\.jsonl, which the run reads"):
        tuned(tiny, tmp_path / "a", data=data, force=True)
    assert data.exists()


def test_a_base_that_changed_between(tiny: Path, tmp_path: Path) -> None:
    from tests.tiny import CONFIG, weights

    tuned(tiny, tmp_path / "a", steps=2, save_every=1)
    (tmp_path / "a" / "adapter_config.json").unlink()
    make_folder(tiny, tensors=weights(CONFIG, seed=1))
    with pytest.raises(FileError, match="the weights are not those that the run"):
        tuned(tiny, tmp_path / "a", steps=2, save_every=1, resume=True)


def test_data_that_is_measured_and_trained_on(tiny: Path, tmp_path: Path) -> None:
    result = tuned(tiny, tmp_path / "a", eval_data=tmp_path / "sums.jsonl", steps=1)
    assert any("12 of 12 examples of --eval-data are in --data too" in note for note in result.plan.notes)


def test_a_rank_beyond_a_matrix(tiny: Path, tmp_path: Path) -> None:
    notes = {rank: tuned(tiny, tmp_path / str(rank), rank=rank, steps=1).plan.notes for rank in (32, 33)}
    assert not notes[32]
    assert "is more than the smaller side of attn_k, 32" in notes[33][0]


def test_too_little_memory(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsmith.tune.memory.free_memory", lambda device: 1 << 20)
    with pytest.raises(UsageError, match=r"training takes about .* are free on cpu"):
        tuned(tiny, tmp_path / "a")


def test_a_rank_that_the_matrices_do_not_have(tiny: Path, tmp_path: Path) -> None:
    from bitsmith.models.adapter import read_adapter
    from tests.adapters import make_adapter

    folder = make_adapter(tmp_path / "a", tiny)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 2 * config["r"]}))
    with pytest.raises(FileError, match=r"adapter_config\.json: r is .* has matrices of rank"):
        read_adapter(folder, open_checkpoint(tiny))


def test_an_adapter_of_another_base_is_refused(tiny: Path, tmp_path: Path) -> None:
    from tests.tiny import CONFIG, weights

    tuned(tiny, tmp_path / "a", steps=1, targets=["q_proj", "down_proj"])
    known = json.loads((tmp_path / "a" / "bitsmith.json").read_text())["base_tensors"]
    assert len(known) == 4
    file = tmp_path / "tiny.gguf"
    bitsmith.quantize(tiny, to="q8_0", out=file)
    other = make_folder(tmp_path / "other", tensors=weights(CONFIG, seed=1))
    changed = tmp_path / "other.gguf"
    bitsmith.quantize(other, to="q8_0", out=changed)
    assert check_base(open_checkpoint(tiny), known, tmp_path / "a")
    assert check_base(open_checkpoint(file), known, tmp_path / "a")
    for model in (other, changed):
        with pytest.raises(FileError, match="another model"):
            check_base(open_checkpoint(model), known, tmp_path / "a")
