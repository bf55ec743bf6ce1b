"""transformers, on the CPU."""

from __future__ import annotations

from typing import Any


class Probe:
    """A model and its tokenizer, loaded with transformers."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(request["threads"])
        self.torch = torch
        self.tokenizer: Any = AutoTokenizer.from_pretrained(request["path"])
        opened: Any = AutoModelForCausalLM
        dtype = getattr(torch, request["dtype"])
        self.model: Any = opened.from_pretrained(request["path"], dtype=dtype, device_map="cpu").eval()

    def versions(self) -> dict[str, str]:
        """Versions of what computes."""
        import transformers

        return {"transformers": transformers.__version__, "torch": self.torch.__version__}

    def chat(self, messages: list[Any], tools: list[Any] | None) -> dict[str, Any]:
        """The conversation as text, and its token ids."""
        text = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        return {"text": text, "ids": self.tokenizer(text, add_special_tokens=False)["input_ids"]}

    def scores(self, ids: list[int], first: int, top: int) -> list[dict[str, float]]:
        """Log probabilities of the likeliest next tokens after positions first - 1 and on, by token id."""
        with self.torch.no_grad():
            logits = self.model(self.torch.tensor([ids])).logits[0, first - 1 :].float()
        found = self.torch.log_softmax(logits, -1).topk(top, -1)
        return [
            {str(token): value for token, value in zip(tokens, values, strict=True)}
            for tokens, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    def greedy(self, ids: list[int], new: int) -> list[int]:
        """The likeliest tokens, one after the other."""
        with self.torch.no_grad():
            given = self.torch.tensor([ids])
            mask = self.torch.ones_like(given)
            drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            made = self.model.generate(given, attention_mask=mask, max_new_tokens=new, **drawn)
        found: list[int] = made[0, len(ids) :].tolist()
        return found

    def close(self) -> None:
        """Nothing is left open."""
