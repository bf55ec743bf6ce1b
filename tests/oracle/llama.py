"""llama.cpp through xllamacpp's shared object: load a GGUF file, tokenize, compute logits.

Struct layouts follow llama.h of the llama.cpp build inside xllamacpp 2026.10.11549; `_library` refuses to run with
another layout by checking the defaults that it knows. One fatal difference to Python: llama.cpp aborts the process on
a failed assertion, so hand it sound files only.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_i32, _u32, _f32, _ptr, _bool = ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_void_p, ctypes.c_bool


class ModelParams(ctypes.Structure):
    _fields_ = (
        ("devices", _ptr),
        ("tensor_buft_overrides", _ptr),
        ("n_gpu_layers", _i32),
        ("split_mode", _i32),
        ("load_mode", _i32),
        ("lazy_mode", _i32),
        ("main_gpu", _i32),
        ("tensor_split", _ptr),
        ("progress_callback", _ptr),
        ("progress_callback_user_data", _ptr),
        ("kv_overrides", _ptr),
        ("vocab_only", _bool),
        ("check_tensors", _bool),
        ("use_extra_bufts", _bool),
        ("no_host", _bool),
        ("no_alloc", _bool),
        ("load_mtp", _bool),
    )


class ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", _u32),
        ("n_batch", _u32),
        ("n_ubatch", _u32),
        ("n_seq_max", _u32),
        ("n_rs_seq", _u32),
        ("n_outputs_max", _u32),
        ("n_outputs_max_per_seq", _u32),
        ("n_threads", _i32),
        ("n_threads_batch", _i32),
        ("ctx_type", _i32),
        ("rope_scaling_type", _i32),
        ("pooling_type", _i32),
        ("attention_type", _i32),
        ("flash_attn_type", _i32),
        ("rope_freq_base", _f32),
        ("rope_freq_scale", _f32),
        ("yarn_ext_factor", _f32),
        ("yarn_attn_factor", _f32),
        ("yarn_beta_fast", _f32),
        ("yarn_beta_slow", _f32),
        ("yarn_orig_ctx", _u32),
        ("defrag_thold", _f32),
        ("cb_eval", _ptr),
        ("cb_eval_user_data", _ptr),
        ("type_k", _i32),
        ("type_v", _i32),
        ("abort_callback", _ptr),
        ("abort_callback_data", _ptr),
        ("newer_than_11434", _ptr),
        ("embeddings", _bool),
        ("offload_kqv", _bool),
        ("no_perf", _bool),
        ("op_offload", _bool),
        ("swa_full", _bool),
        ("kv_unified", _bool),
        ("samplers", _ptr),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", _ptr),
        ("spare", ctypes.c_uint8 * 256),
    )


class ImageParams(ctypes.Structure):
    _fields_ = (
        ("use_gpu", _bool),
        ("device", _ptr),
        ("print_timings", _bool),
        ("n_threads", _i32),
        ("image_marker", _ptr),
        ("media_marker", ctypes.c_char_p),
        ("flash_attn_type", _i32),
        ("warmup", _bool),
        ("image_min_tokens", _i32),
        ("image_max_tokens", _i32),
        ("cb_eval", _ptr),
        ("cb_eval_user_data", _ptr),
        ("batch_max_tokens", _i32),
        ("progress_callback", _ptr),
        ("progress_callback_user_data", _ptr),
    )


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", _i32),
        ("token", ctypes.POINTER(_i32)),
        ("embd", ctypes.POINTER(_f32)),
        ("pos", ctypes.POINTER(_i32)),
        ("n_seq_id", ctypes.POINTER(_i32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_i32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (_ptr, (ctypes.c_char_p, ModelParams)),
    "llama_model_free": (None, (_ptr,)),
    "llama_model_get_vocab": (_ptr, (_ptr,)),
    "llama_vocab_n_tokens": (_i32, (_ptr,)),
    "llama_vocab_is_eog": (_bool, (_ptr, _i32)),
    "llama_vocab_bos": (_i32, (_ptr,)),
    "llama_tokenize": (_i32, (_ptr, ctypes.c_char_p, _i32, ctypes.POINTER(_i32), _i32, _bool, _bool)),
    "llama_detokenize": (_i32, (_ptr, ctypes.POINTER(_i32), _i32, ctypes.c_char_p, _i32, _bool, _bool)),
    "llama_init_from_model": (_ptr, (_ptr, ContextParams)),
    "llama_free": (None, (_ptr,)),
    "llama_batch_init": (Batch, (_i32, _i32, _i32)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (_i32, (_ptr, Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(_f32), (_ptr, _i32)),
    "llama_log_set": (None, (_ptr, _ptr)),
    "llama_adapter_lora_init": (_ptr, (_ptr, ctypes.c_char_p)),
    "llama_set_adapters_lora": (_i32, (_ptr, ctypes.POINTER(_ptr), ctypes.c_size_t, ctypes.POINTER(_f32))),
}
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, _ptr)


@_LOG
def _quiet(level: int, text: bytes, data: int | None) -> None:
    """Swallows llama.cpp's messages."""


@cache
def _library() -> ctypes.CDLL:
    spec = find_spec("xllamacpp")
    assert spec is not None, "the oracle tests need xllamacpp"
    assert spec.origin is not None
    library = ctypes.CDLL(str(next(Path(spec.origin).parent.glob("xllamacpp*.so"))))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_quiet, None)
    model, context = library.llama_model_default_params(), library.llama_context_default_params()
    known = (model.n_gpu_layers, model.split_mode, model.use_extra_bufts, model.vocab_only, context.n_ctx)
    known += (context.n_batch, context.type_k, context.type_v, context.offload_kqv, context.yarn_ext_factor)
    assert known == (-1, 1, True, False, 512, 2048, 1, 1, True, -1.0), f"another llama.h than expected: {known}"
    return library


@dataclass(frozen=True)
class Llama:
    """A loaded GGUF file; free it with `close`."""

    library: ctypes.CDLL
    model: int
    vocab: int

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return int(self.library.llama_vocab_n_tokens(self.vocab))

    @property
    def bos(self) -> int:
        """The start token llama.cpp uses; -1 where there is none."""
        return int(self.library.llama_vocab_bos(self.vocab))

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens at which llama.cpp stops generating."""
        return frozenset(i for i in range(self.n_vocab) if self.library.llama_vocab_is_eog(self.vocab, i))

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """llama_tokenize."""
        data = text.encode("utf-8")
        room = len(data) + 16
        ids = (_i32 * room)()
        n = self.library.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, parse_special)
        assert n >= 0, n
        return list(ids[:n])

    def detokenize(self, tokens: list[int], *, special: bool = False) -> bytes:
        """llama_detokenize, nothing removed; `special` renders control tokens."""
        ids = (_i32 * len(tokens))(*tokens)
        room = 256 * len(tokens) + 64
        text = ctypes.create_string_buffer(room)
        n = self.library.llama_detokenize(self.vocab, ids, len(tokens), text, room, False, special)
        assert n >= 0, n
        return text.raw[:n]

    def logits(self, tokens: list[int] | np.ndarray, *, exact: bool = True, adapter: Path | None = None) -> np.ndarray:
        """Logits after every token of one sequence: [n] -> float32 [n, vocab].

        adapter: a GGUF adapter, at its full weight
        exact: attention in float32 (no flash attention, a float32 cache); False: llama.cpp's defaults
        """
        n = len(tokens)
        params = self.library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n
        params.n_outputs_max = params.n_outputs_max_per_seq = n
        params.n_threads = params.n_threads_batch = 1
        if exact:
            params.flash_attn_type, params.type_k, params.type_v = 0, 0, 0
        context = self.library.llama_init_from_model(self.model, params)
        assert context, "llama_init_from_model failed"
        if adapter is not None:
            lora = self.library.llama_adapter_lora_init(self.model, str(adapter).encode())
            assert lora, f"llama.cpp cannot load {adapter}"
            assert self.library.llama_set_adapters_lora(context, (_ptr * 1)(lora), 1, (_f32 * 1)(1.0)) == 0
        batch = self.library.llama_batch_init(n, 0, 1)
        try:
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
                batch.seq_id[i][0] = 0
            batch.n_tokens = n
            status = self.library.llama_decode(context, batch)
            assert status == 0, f"llama_decode returned {status}"
            rows = [
                np.ctypeslib.as_array(self.library.llama_get_logits_ith(context, i), (self.n_vocab,)) for i in range(n)
            ]
            return np.stack(rows)
        finally:
            self.library.llama_batch_free(batch)
            self.library.llama_free(context)

    def opens(self, *, type_k: int, type_v: int) -> bool:
        """Whether llama.cpp makes a context with these ggml types of keys and values."""
        params = self.library.llama_context_default_params()
        params.n_ctx, params.type_k, params.type_v = 64, type_k, type_v
        params.n_threads = params.n_threads_batch = 1
        context = self.library.llama_init_from_model(self.model, params)
        if context:
            self.library.llama_free(context)
        return bool(context)

    def takes_images(self, mmproj: Path) -> bool:
        """Whether llama.cpp loads a file of the parts for images beside this model."""
        library = self.library
        library.mtmd_context_params_default.restype = ImageParams
        library.mtmd_init_from_file.restype = library.mtmd_free.restype = _ptr
        library.mtmd_init_from_file.argtypes = (ctypes.c_char_p, _ptr, ImageParams)
        library.mtmd_support_vision.restype, library.mtmd_support_vision.argtypes = _bool, (_ptr,)
        library.mtmd_free.argtypes = (_ptr,)
        params = library.mtmd_context_params_default()
        assert (params.media_marker, params.batch_max_tokens) == (b"<__media__>", 1024), "another layout of mtmd.h"
        params.use_gpu, params.warmup, params.n_threads = False, False, 1
        context = library.mtmd_init_from_file(str(mmproj).encode(), self.model, params)
        if not context:
            return False
        found = bool(library.mtmd_support_vision(context))
        library.mtmd_free(context)
        return found

    def close(self) -> None:
        """Frees the model."""
        self.library.llama_model_free(self.model)


def load(path: Path, *, vocab_only: bool = False) -> Llama:
    """Load a GGUF file on the CPU, its weights as they are (no repacking)."""
    library = _library()
    params = library.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only, params.use_extra_bufts = 0, vocab_only, False
    model = library.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp cannot load {path}"
    return Llama(library, model, library.llama_model_get_vocab(model))
