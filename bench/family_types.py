"""Hold the types that bitsmith gives the tensors of each family against llama-quantize's.

    python bench/family_types.py PATH/TO/llama-quantize [NAMES ...]

Small random models of the families in tests/families.py, wide enough that no tensor falls back to simple types for
its width alone, are written as F16 GGUF files and quantized by both programs.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from gguf import GGUFReader

import bitsmith
from tests import families

MIXES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S")


def types_of(file: Path) -> dict[str, str]:
    """ggml's type of each tensor."""
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}


def compare(name: str, program: Path, work: Path) -> None:
    """Print for each mix how many tensors differ, and the types."""
    folder, _ = families.folder_of(name, work / name)
    source = bitsmith.convert(folder, to="gguf/f16", out=work / "source.gguf", force=True).out
    for mix in MIXES:
        theirs = work / "theirs.gguf"
        subprocess.run([program, source, theirs, mix, "2"], check=True, capture_output=True)
        ours = bitsmith.quantize(folder, to=mix.lower(), out=work / "ours.gguf", force=True).out
        found, wanted = types_of(ours), types_of(theirs)
        wrong = {key: (found.get(key), wanted.get(key)) for key in found | wanted if found.get(key) != wanted.get(key)}
        print(f"{name} {mix}: {len(wanted)} tensors, {len(wrong)} differ", dict(Counter(wanted.values())), wrong or "")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="llama-quantize")
    parser.add_argument("names", nargs="*", default=list(families.MODELS))
    args = parser.parse_args()
    families.SHAPE |= {
        "hidden_size": 256,
        "num_attention_heads": 16,
        "intermediate_size": 512,
    }  # heads as wide as before
    families.SHARED |= {"moe_intermediate_size": 256, "shared_expert_intermediate_size": 256}
    with tempfile.TemporaryDirectory() as work:
        for name in args.names:
            compare(name, args.program, Path(work))


if __name__ == "__main__":
    main()
