"""torch's attention by name: each backend of `scaled_dot_product_attention`, and FlexAttention compiled.

Flash attention and FlexAttention know groups of heads. The other backends get the query heads of a group as query
tokens of their KV head, `[B, H_kv, group, D]`, so that they do not repeat the cache. To put o's heads in order again,
o is copied, inside the measured time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from kernels.attention_decode.op import AttentionCase, work
from kernels.attention_decode.peers import dense_only, one_pass
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version

RECOMPILES = 64
"""Shapes that one compiled function may see; each case of a run is one shape."""


def math_stages(case: AttentionCase, target: Target) -> tuple[Stage, ...]:
    """Two matrix products in fp32 with a softmax between them; before that, copies of K and V are written and read.

    A 16-bit cache is converted. K is multiplied by the square root of the scale. If tokens lie before heads, the heads
    of several sequences are put in order for a batched product.
    """
    in_order = case.layout == "HND" or min(case.B, case.H_kv) == 1
    copies = 1 + (0 if case.dtype == "fp32" else 2) + (0 if in_order else 2)
    wide = 4 * copies * case.B * case.T * case.H_kv * case.D
    scores = 4 * 4 * case.B * case.H_q * case.T
    return (Stage(name="math", work=work(case) + Work(bytes_read=wide, bytes_written=wide), l2_bytes=scores),)


def supports(backend: str) -> Callable[[AttentionCase, Target], str | None]:
    def check(case: AttentionCase, target: Target) -> str | None:
        if reason := dense_only(case, target):
            return reason
        if case.q_len > 1:
            return "takes one query token a sequence: the heads of a group are passed as query tokens"
        if backend in ("efficient", "cudnn") and target.kind != "cuda":
            return "needs an NVIDIA GPU"
        if backend == "cudnn" and target.sm < 80:
            return "cuDNN's attention needs sm_80 or later"
        if backend == "cudnn" and (case.D > 128 or case.D % 8):
            return f"cuDNN's attention takes heads of a multiple of 8 up to 128, not of {case.D}"
        if backend == "flash" and case.D > 256:
            return f"flash attention takes heads of up to 256, not of {case.D}"
        if backend in ("flash", "cudnn") and target.kind == "cuda" and case.dtype == "fp32":
            return "takes fp16 and bf16"
        return None

    return check


def heads_first(case: AttentionCase, inputs: Inputs, name: str) -> Any:
    """A cache as `[B, H_kv, T, D]`; a window is a slice of it."""
    stored = inputs[name] if case.layout == "HND" else inputs[name].transpose(1, 2)
    return stored[:, :, -case.window :] if case.window else stored


def flash(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
    """It allocates o."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q = inputs["q"].transpose(1, 2)  # [B, H_q, 1, D]
    k, v = (heads_first(case, inputs, name) for name in ("k", "v"))

    def launch() -> torch.Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            o = scaled_dot_product_attention(q, k, v, scale=case.softmax_scale, enable_gqa=case.group > 1)
            return o.transpose(1, 2)

    return launch


def grouped(backend: str) -> Callable[[AttentionCase, Inputs, Target], Launch]:
    """Query heads are passed as query tokens to the named `SDPBackend`."""

    def prepare(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
        """It allocates o."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        q = inputs["q"].view(case.B, case.H_kv, case.group, case.D)
        k, v = (heads_first(case, inputs, name) for name in ("k", "v"))
        chosen = getattr(SDPBackend, backend)

        def launch() -> torch.Tensor:
            with sdpa_kernel(chosen):
                o = scaled_dot_product_attention(q, k, v, scale=case.softmax_scale)
                return o.reshape(case.B, 1, case.H_q, case.D)

        return launch

    return prepare


def flex_supports(case: AttentionCase, target: Target) -> str | None:
    if case.page:
        return "would need a new mask for every step's block table; takes contiguous caches only"
    if case.sink_logits:
        return "has no sinks in its softmax"
    if case.lengths != "uniform" or case.kv or case.window or case.q_len > 1:
        return "reads what a mask hides in a block, poisoned here; takes whole tensors and one query token only"
    if target.kind != "cuda" or target.sm < 80:
        return "is compiled for NVIDIA GPUs of sm_80 or later"
    return None


@cache
def compiled_flex() -> Any:
    """One compiled function for all cases. With `fullgraph`, code that it cannot compile is an error, not a slow
    fallback."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def flex(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
    """`flex_attention` under torch.compile; a soft cap is a function of scores. It is compiled here, and allocates
    o."""
    import torch

    q = inputs["q"].transpose(1, 2)  # [B, H_q, 1, D]
    k, v = (heads_first(case, inputs, name) for name in ("k", "v"))

    def capped(score: Any, b: Any, h: Any, i: Any, t: Any) -> Any:
        return case.softcap * torch.tanh(score / case.softcap)

    attention, score_mod = compiled_flex(), capped if case.softcap else None

    def launch() -> torch.Tensor:
        o = attention(q, k, v, score_mod=score_mod, scale=case.softmax_scale, enable_gqa=case.group > 1)
        return o.transpose(1, 2)

    with torch._dynamo.config.patch(recompile_limit=RECOMPILES):
        launch()
    return launch


def cudnn_version() -> str:
    import torch

    return f"{torch_version()}, cuDNN {torch.backends.cudnn.version()}"


BACKENDS = {
    "flash": flash,
    "efficient": grouped("EFFICIENT_ATTENTION"),
    "cudnn": grouped("CUDNN_ATTENTION"),
    "math": grouped("MATH"),
}

IMPLS = (
    *(
        Impl(
            name=f"torch-{backend}",
            stages=math_stages if backend == "math" else one_pass,
            prepare=prepare,
            supports=supports(backend),
            version=cudnn_version if backend == "cudnn" else torch_version,
        )
        for backend, prepare in BACKENDS.items()
    ),
    Impl(
        name="torch-flex",
        stages=one_pass,
        prepare=flex,
        supports=flex_supports,
        version=torch_version,
        by_torch_compile=True,
    ),
)
