"""FlashInfer's decode of the gated delta rule over a pool of states, which has the same layout [V, K].

It takes the slots that are read and those that are written. It has no convolution, and writes y in 16 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common import flashinfer_needs
from kernels.common.random_inputs import BYTES
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work
from kernels.state_update.cases import StateCase
from kernels.state_update.memory import state_of, y_of
from kernels.state_update.op import work

if TYPE_CHECKING:
    import torch

HEAD = 128
"""Its kernels for 16-bit states are for V = K = 128."""


def stages(case: StateCase, target: Target) -> tuple[Stage, ...]:
    """The parts of a token and the slots are put in tensors of their own before; the copies stay in the L2."""
    copied = case.B * (BYTES[case.dtype] * case.width + 8)
    parts = Work(bytes_read=copied)
    return Stage(name="parts", work=parts, l2_bytes=copied), Stage(name="update", work=work(case), l2_bytes=copied)


def supports(case: StateCase, target: Target) -> str | None:
    if missing := flashinfer_needs.missing(target):
        return missing
    if target.sm < 90:
        return f"needs sm_90 or later, this part is sm_{target.sm}"
    if case.kind != "gated_delta":
        return "is measured with gated delta nets"
    if case.conv:
        return "has no convolution"
    if case.state != "bf16" or case.dtype != "bf16":
        return "writes y in bf16, and here y has the type of the state"
    if (case.V, case.K) != (HEAD, HEAD):
        return f"has kernels for V = K = {HEAD}"
    if case.q_len > 1 or case.every > 1:
        return "is measured with one token that writes its state"
    if case.idle:
        return "writes slot 0 for an idle entry, which belongs to a sequence here"
    return None


def prepare(case: StateCase, inputs: Inputs, target: Target) -> Launch:
    """The launch copies what depends on tokens and slots into tensors that are made here."""
    import torch
    from flashinfer.gdn_decode import gated_delta_rule_decode_pretranspose

    tokens, memory = inputs["tokens"], inputs["memory"]
    sizes = [*case.channels.values(), *case.gates.values()]
    heads = [(case.G, case.K), (case.G, case.K), (case.H, case.V), (case.H,), (case.H,)]
    parts = [part.view(case.B, 1, *shape) for part, shape in zip(tokens.split(sizes, dim=2), heads, strict=True)]
    q, k, v, a, b = own = [torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in parts]
    read, written = (torch.empty(case.B, dtype=torch.int32, device=tokens.device) for _ in range(2))
    pool, y = state_of(case, memory), y_of(case, memory)

    def launch() -> torch.Tensor:
        for mine, part in zip(own, parts, strict=True):
            mine.copy_(part)
        read.copy_(inputs["slots"][:, 1])
        written.copy_(inputs["slots"][:, 2])
        gated_delta_rule_decode_pretranspose(
            q=q,
            k=k,
            v=v,
            state=None,
            A_log=inputs["A_log"],
            a=a,
            dt_bias=inputs["dt_bias"],
            b=b,
            output=y,
            use_qk_l2norm=True,
            initial_state=pool,
            initial_state_indices=read,
            output_state_indices=written,
        )
        return memory

    return launch


IMPLS = (Impl(name="flashinfer", stages=stages, prepare=prepare, supports=supports, version=flashinfer_needs.version),)
