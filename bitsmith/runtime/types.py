"""The types that the C++ core computes with: of matrices, and of keys and values."""

PACKED = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"),
    *("nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"),
)
FLOATS = ("f32", "f16", "bf16")
CACHES = ("f16", "q8_0", "f32")  # types of keys and values, the usual one first
