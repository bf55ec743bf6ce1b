"""mlx-lm, on whatever device mlx has."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any


class Probe:
    """A model and its tokenizer, loaded with mlx-lm."""

    def __init__(self, request: dict[str, Any]) -> None:
        import mlx.core as mx
        from mlx_lm import load

        self.mx = mx
        loaded: Any = load(request["path"])
        self.model, self.tokenizer = loaded[0], loaded[1]

    def versions(self) -> dict[str, str]:
        """Versions of what computes."""
        return {"mlx": str(self.mx.__version__), "mlx-lm": version("mlx-lm")}

    def chat(self, messages: list[Any], tools: list[Any] | None) -> dict[str, Any]:
        """The conversation as text, and its token ids."""
        text = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        return {"text": text, "ids": self.tokenizer.encode(text, add_special_tokens=False)}

    def scores(self, ids: list[int], first: int, top: int) -> list[dict[str, float]]:
        """Log probabilities of the likeliest next tokens after positions first - 1 and on, by token id."""
        mx = self.mx
        logits = self.model(mx.array([ids]))[0, first - 1 :].astype(mx.float32)
        logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        order = mx.argsort(-logs, axis=-1)[:, :top]
        values = mx.take_along_axis(logs, order, axis=-1)
        return [
            {str(token): value for token, value in zip(tokens, numbers, strict=True)}
            for tokens, numbers in zip(order.tolist(), values.tolist(), strict=True)
        ]

    def greedy(self, ids: list[int], new: int) -> list[int]:
        """The likeliest tokens, one after the other, with mlx-lm's own generation and its cache."""
        from mlx_lm.generate import generate_step

        found = []
        for token, _ in generate_step(self.mx.array(ids), self.model, max_tokens=new):
            found.append(int(token))
            if int(token) in self.tokenizer.eos_token_ids:
                break
        return found

    def parse_call(self, text: str, tools: list[Any]) -> dict[str, Any]:
        """The calls that mlx-lm's parser finds in a text, if it has one for this chat template."""
        tokenizer = self.tokenizer
        if not getattr(tokenizer, "has_tool_calling", False):
            return {"absent": "mlx-lm has no parser of tool calls for this chat template"}
        inner = text.partition(tokenizer.tool_call_start)[2] if tokenizer.tool_call_start else text
        if tokenizer.tool_call_end:
            inner = inner.partition(tokenizer.tool_call_end)[0]
        found = tokenizer.tool_parser(inner, tools)
        return {"calls": found if isinstance(found, list) else [found]}

    def close(self) -> None:
        """Nothing is left open."""
