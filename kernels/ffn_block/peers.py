"""What a user could call instead of our kernels: torch, in the way that model code is written."""

from __future__ import annotations

from kernels.common.gated import ALPHA, LIMIT, OPERATORS
from kernels.common.random_inputs import BYTES
from kernels.ffn_block.op import FfnCase
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version


def linears(case: FfnCase, inputs: Inputs, target: Target) -> Launch:
    """Three matrix products (cuBLAS, oneDNN or MKL), and between them the operators of the activation, in place."""
    import torch

    x, gate_t, up_t, down_t = inputs["x"], inputs["w_gate"].T, inputs["w_up"].T, inputs["w_down"].T
    gate = torch.empty(case.B, case.ffn, dtype=x.dtype, device=x.device)
    up, y, spare = torch.empty_like(gate), torch.empty_like(x), torch.empty_like(gate)

    def activate() -> torch.Tensor:
        if case.activation == "geglu":
            return torch.ops.aten.gelu_(gate, approximate="tanh").mul_(up)
        if case.activation == "swiglu_clamped":
            gate.clamp_(max=LIMIT)
            up.clamp_(min=-LIMIT, max=LIMIT).add_(1.0)
            torch.mul(gate, ALPHA, out=spare).sigmoid_()
            return gate.mul_(spare).mul_(up)
        if case.activation == "glu":
            return gate.sigmoid_().mul_(up)
        return torch.nn.functional.silu(gate, inplace=True).mul_(up)

    def launch() -> torch.Tensor:
        torch.mm(x, gate_t, out=gate)
        torch.mm(x, up_t, out=up)
        return torch.mm(activate(), down_t, out=y)

    return launch


def kernels(case: FfnCase, target: Target) -> tuple[Stage, ...]:
    """Each matrix once from DRAM. What passes between the kernels is small and stays in the L2."""
    size = BYTES[case.dtype]
    pipe = "fma_fp32" if case.dtype == "fp32" else "mma_bf16"
    matrix, narrow, wide = case.ffn * case.hidden * size, case.B * case.hidden * size, case.B * case.ffn * size
    flops = {pipe: 2 * case.B * case.ffn * case.hidden}
    return (
        Stage(name="gate", work=Work(flops=flops, bytes_read=matrix + narrow), l2_bytes=wide),
        Stage(name="up", work=Work(flops=flops, bytes_read=matrix), l2_bytes=narrow + wide),
        *(Stage(name=name, work=Work(), l2_bytes=arrays * wide) for name, arrays in OPERATORS[case.activation].items()),
        Stage(name="down", work=Work(flops=flops, bytes_read=matrix, bytes_written=narrow), l2_bytes=wide),
    )


IMPLS = (Impl(name="torch", stages=kernels, prepare=linears, version=torch_version),)
