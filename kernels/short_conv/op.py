"""y[b, c] = silu(sum_t w[t, c] x[b, n - taps + 1 + t, c] + bias[c]): one step of a causal convolution over channels.

x[b, n] is the new token of sequence b, [B, C], maybe some columns of a wider product; w is [taps, C]. The tokens before
it stand in ring rings[b] of [B, taps, C], token n in place n % taps. The new one is put there too, in the place that no
token needs any more. y is [B, C]. Mamba makes B, C and dt from y by a product (arXiv 2312.00752, section 3.4), so there
the convolution cannot be a part of the state's update.

Rings, then y, are rows of one tensor `memory` [B taps + B, C].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kernels.common.compare import rounded
from kernels.common.fields import Dtype
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.op import Case, Inputs, Op, Tolerance, Work
from kernels.state_update.memory import fill

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ConvCase(Case):
    """`B` sequences with one new token of `C` channels each."""

    B: int
    C: int
    taps: int = 4
    dtype: Dtype = "bf16"

    @property
    def id(self) -> str:
        return f"B{self.B}-C{self.C}-taps{self.taps}-{self.dtype}"

    @property
    def memory_shape(self) -> tuple[int, int]:
        return self.B * (self.taps + 1), self.C


JAMBA = ConvCase(B=1, C=8192, model="jamba-v0.1")
"""huggingface.co/ai21labs/Jamba-v0.1, config.json: hidden_size 4096 x mamba_expand 2, and mamba_d_conv 4."""


def cases(suite: str) -> list[ConvCase]:
    """One of each suite: it is some microseconds of start, whatever its size."""
    if suite == "smoke":
        return []
    if suite in ("quick", "full"):
        return [replace(JAMBA, B=1 if suite == "quick" else 64)]
    return [
        ConvCase(B=3, C=72, dtype="fp32"),
        ConvCase(B=1, C=1030, dtype="fp16"),
        ConvCase(B=5, C=40, taps=3, dtype="fp16"),
        ConvCase(B=2, C=8, taps=1, dtype="fp16"),
    ]


def background(case: ConvCase, device: str | torch.device) -> torch.Tensor:
    """`memory` before a launch, the same for every seed. On `meta` it has a shape only."""
    import torch

    memory = torch.empty(case.memory_shape, dtype=torch_dtype(case.dtype), device=device)
    if str(device) != "meta":
        fill(memory.view(-1), 0)
    return memory


def ring_of(case: ConvCase, memory: torch.Tensor) -> torch.Tensor:
    """`[B, taps, C]`"""
    return memory[: case.B * case.taps].view(case.B, case.taps, case.C)


def y_of(case: ConvCase, memory: torch.Tensor) -> torch.Tensor:
    """`[B, C]`"""
    return memory[case.B * case.taps :]


def inputs(case: ConvCase, device: str, seed: int) -> Inputs:
    """Tokens ~ N(0, 1); rings in random order, and sequences of any length."""
    import torch

    draw = RandomInputs(device, seed)
    rings = torch.randperm(case.B, generator=torch.Generator().manual_seed(seed)).int()
    return {
        "x": draw.normal((case.B, case.C), case.dtype),
        "memory": background(case, device),
        "weight": draw.normal((case.taps, case.C), case.dtype, 0.5),
        "bias": draw.normal((case.C,), case.dtype, 0.25),
        "rings": rings.to(device),
        "positions": draw.integers(case.taps, 10000, (case.B,)),
    }


def window(case: ConvCase, inputs: Inputs, rings: torch.Tensor) -> torch.Tensor:
    """`[B, taps, C]`: the tokens under the convolution, the oldest first and the new one last."""
    import torch

    back = torch.arange(1 - case.taps, 0, device=rings.device)
    places = (inputs["positions"].long()[:, None] + back) % case.taps
    return torch.cat([rings[inputs["rings"].long()[:, None], places], inputs["x"][:, None]], dim=1)


def convolved(case: ConvCase, inputs: Inputs, rings: torch.Tensor) -> torch.Tensor:
    """y in fp64."""
    import torch

    weight, bias = inputs["weight"].double(), inputs["bias"].double()
    return torch.nn.functional.silu((window(case, inputs, rings).double() * weight).sum(1) + bias)


def append(case: ConvCase, inputs: Inputs, rings: torch.Tensor) -> None:
    """Put the new tokens in their places."""
    rings[inputs["rings"].long(), inputs["positions"].long() % case.taps] = inputs["x"].to(rings.dtype)


def reference(case: ConvCase, inputs: Inputs) -> torch.Tensor:
    """The memory after the step in fp64. It starts from the background, not from what `memory` holds."""
    before = background(case, inputs["x"].device)
    after = before.double()
    append(case, inputs, ring_of(case, after))
    y_of(case, after).copy_(convolved(case, inputs, ring_of(case, before)))
    return after


def poison(case: ConvCase, inputs: Inputs, output: torch.Tensor) -> None:
    """NaN where the launch must write, and the background everywhere else."""
    output.copy_(background(case, output.device))
    ring_of(case, output)[inputs["rings"].long(), inputs["positions"].long() % case.taps] = float("nan")
    y_of(case, output).fill_(float("nan"))


def work(case: ConvCase) -> Work:
    """New and old tokens once, weights and bias once, y and the new token written; silu is three operations."""
    elements, size = case.B * case.C, BYTES[case.dtype]
    return Work(
        flops={"fma_fp32": (2 * case.taps + 4) * elements},
        bytes_read=size * (case.taps * elements + (case.taps + 1) * case.C) + 8 * case.B,
        bytes_written=2 * size * elements,
    )


def tolerance(case: ConvCase) -> Tolerance:
    why = "one rounding of y to its type"
    return rounded(case.dtype, terms="the taps", max_units=4, rms_units=1.5, why=why)


OP = Op(
    name="short_conv",
    title="short convolutions",
    role="decode",
    about="one token through a short causal convolution, whose last inputs stand in a ring",
    formula="y[b,c] = silu(sum_t w[t,c] x[b,n-taps+1+t,c] + bias[c])",
    case_type=ConvCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x", "memory", "rings", "positions"),
    poison=poison,
)
