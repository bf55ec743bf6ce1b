"""A toy family: a row over the operations that exist. Norms behind them, gelu, and a divisor of logits."""

from bitsmith.models.arch.family import AFTER, Decoder, Family

ROW = Family(
    "toy",
    norms=AFTER,
    tied=True,
    decoder=Decoder(
        ("ToyForCausalLM",),
        interleaved=True,
        activation="gelu_tanh",
        fields=("hidden_activation",),
        numbers={"toy_divisor": ("logit_divisor", 2.0)},
        gguf_keys=("logit_scale",),
    ),
)
