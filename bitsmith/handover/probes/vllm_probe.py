"""vLLM, on the CPU or on a GPU."""

from __future__ import annotations

import os
from typing import Any

for _name, _value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():
    os.environ.setdefault(_name, _value)
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process, which can be stopped as one


class Probe:
    """vLLM's offline engine."""

    def __init__(self, request: dict[str, Any]) -> None:
        from vllm import LLM

        self.llm: Any = LLM(
            request["path"],
            dtype=request["dtype"],
            max_model_len=request["context"],
            enforce_eager=True,
            max_logprobs=request["top"],
            **request.get("engine", {}),
        )
        self.tokenizer: Any = self.llm.get_tokenizer()
        self.parser = request.get("tool_parser", "")

    def versions(self) -> dict[str, str]:
        """Versions of what computes."""
        import torch
        import vllm

        return {"vllm": vllm.__version__, "torch": torch.__version__}

    def chat(self, messages: list[Any], tools: list[Any] | None) -> dict[str, Any]:
        """The conversation as text, and its token ids."""
        text = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        return {"text": text, "ids": self.tokenizer(text, add_special_tokens=False)["input_ids"]}

    def scores(self, ids: list[int], first: int, top: int) -> list[dict[str, float]]:
        """Log probabilities of the likeliest next tokens after positions first - 1 and on, by token id."""
        made = self._made(ids, max_tokens=1, logprobs=top, prompt_logprobs=top)
        rows = [*made.prompt_logprobs[first:], made.outputs[0].logprobs[0]]
        return [{str(token): value.logprob for token, value in row.items()} for row in rows]

    def greedy(self, ids: list[int], new: int) -> list[int]:
        """The likeliest tokens, one after the other."""
        return list(self._made(ids, max_tokens=new).outputs[0].token_ids)

    def parse_call(self, text: str, tools: list[Any]) -> dict[str, Any]:
        """The calls that the parser finds in a text which the server is started with, if it is with one."""
        if not self.parser:
            return {"absent": "vLLM is started without a parser of tool calls for this chat template"}
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager

        request = ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], model="m", tools=tools)
        parser: Any = ToolParserManager.get_tool_parser(self.parser)(self.tokenizer, request.tools)
        found = parser.extract_tool_calls(text, request).tool_calls
        return {"calls": [{"name": each.function.name, "arguments": each.function.arguments} for each in found]}

    def _made(self, ids: list[int], **words: Any) -> Any:
        from vllm import SamplingParams

        given: Any = {"prompt_token_ids": ids}
        return self.llm.generate([given], SamplingParams(temperature=0.0, **words), use_tqdm=False)[0]

    def close(self) -> None:
        """The engine ends with the process."""
