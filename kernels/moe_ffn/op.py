"""y[b] = sum over j of weight[b, j] Wd_e a(Wg_e x[b], Wu_e x[b]), e = id[b, j]: the routed experts of a MoE.

The activation a(g, u) is silu(g) u, or another one of `kernels/common/gated.py`.

x is [B, H], ids and weights [B, k] as the router left them, w_gate_up [E, 2F, H] (gate rows, then up rows),
w_down [E, H, F], y [B, H]. With `bias`, the products have biases b_gate_up [E, 2F] and b_down [E, H] (gpt-oss).
An activation without a gate (relu2) has w_up [E, F, H] alone, under the same name.
Only experts that some token of the batch is routed to are read: k of E at batch 1, all at large batches. So the bytes
of a decode step grow with the batch until all E experts are hit.

With `parts`, whole experts lie on so many GPUs, and a case is what the busiest of them gets: a row of x for each
(token, expert) pair that is sent to it, and an output row for each, which goes back to the token's own GPU. `shared`
experts take all tokens of a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common import gated, outliers
from kernels.common.compare import rounded_ffn
from kernels.common.expert_routing import ROUTINGS, drawn, of_busiest
from kernels.common.fields import Count, Dtype, OneOf
from kernels.common.integers import cdiv
from kernels.common.quantization import BESIDE, Weights, check_weights, dequantize, random_weights, weight_bytes
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.common.smaller import fewer
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MoeCase(Case):
    """`B` tokens, each routed to `k` of `E` experts of width `F`; `H` is the model's hidden size.

    - `routing` is `uniform`, where all sets of k experts are equally likely, `zipf`, where the r-th expert has a chance
      of 1 / r, or `lognormal`, as published counts have it; `seed` draws it. The case fixes how many tokens each rank
      of expert gets. The inputs decide which expert has which rank
    - `groups`, `top_groups`: a token's experts come from its best groups (DeepSeek); 0: from all
    - `parts`, `shared`: see above. `B` is the tokens of all parts

    `weights` is `dtype` (also if empty) or a format of `kernels/common/quantization.py`; activations are in `dtype`.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"routing": "uniform", "groups": 0, "parts": 1, "shared": 0}

    B: int
    E: int
    k: int
    H: int
    F: int
    routing: Annotated[str, OneOf(*ROUTINGS)] = "uniform"
    seed: Count = 0
    dtype: Dtype = "bf16"
    weights: Weights = ""
    activation: gated.Activation = "swiglu"
    bias: bool = False
    groups: Count = 0
    top_groups: Count = 0
    parts: int = 1
    shared: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.E:
            raise ValueError(f"k = {self.k}: at most the E = {self.E} experts")
        if self.E % self.parts:
            raise ValueError(f"parts {self.parts}: each has as many of the E = {self.E} experts")
        if self.top_groups > self.groups:
            raise ValueError(f"top_groups {self.top_groups}: at most the groups, {self.groups}")
        if self.groups and (self.E % self.groups or self.k > self.E // self.groups * self.top_groups):
            raise ValueError(f"groups {self.groups}: equal ones, of which top_groups hold k = {self.k} experts")
        object.__setattr__(self, "weights", self.weights or self.dtype)
        check_weights(self.weights, self.dtype, H=self.H, F=self.F)

    @property
    def quantized(self) -> bool:
        return self.weights != self.dtype

    @property
    def id(self) -> str:
        routing = ROUTINGS[self.routing]
        routing += f"-{self.top_groups}of{self.groups}" if self.groups else ""
        routing += f"-ep{self.parts}" if self.parts > 1 else ""
        routing += f"-s{self.shared}" if self.shared else ""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"B{self.B}-E{self.E}k{self.k}-H{self.H}-F{self.F}{routing}{seed}-{self.dtype}" + (
            (f"-w{self.weights}" if self.quantized else "")
            + gated.suffix(self.activation)
            + ("-bias" if self.bias else "")
        )

    @property
    def rows(self) -> int:
        """Rows of x."""
        return len(routing(self)) if self.parts > 1 else self.B

    @property
    def width(self) -> int:
        """Experts of a row."""
        return 1 if self.parts > 1 else self.k + self.shared

    @property
    def experts(self) -> int:
        """Experts whose weights are here."""
        return self.E // self.parts + self.shared

    @property
    def pairs(self) -> int:
        """(token, expert) pairs."""
        return self.rows * self.width

    @property
    def matrices(self) -> int:
        """How many matrices multiply x: gate and up, or up alone."""
        return gated.matrices(self.activation)

    @property
    def expert_bytes(self) -> int:
        """Bytes of gate, up and down of one expert, scales and biases included."""
        if self.quantized:
            size = BYTES[self.dtype]
            gate_or_up = weight_bytes(self.weights, self.F, self.H, size)
            return self.matrices * gate_or_up + weight_bytes(self.weights, self.H, self.F, size) + self.bias_bytes
        return (self.matrices + 1) * self.H * self.F * BYTES[self.dtype] + self.bias_bytes

    @property
    def bias_bytes(self) -> int:
        """Bytes of the biases of one expert, which are in the type of the activations."""
        return (self.matrices * self.F + self.H) * BYTES[self.dtype] * self.bias


@cache
def routing(case: MoeCase) -> tuple[tuple[int, ...], ...]:
    """The distinct experts of each row of x, as ranks: rank 0 is the most popular under `zipf` on one part."""
    groups = {"groups": case.groups, "top_groups": case.top_groups}
    tokens = drawn(case.B, case.E, case.k, kind=case.routing, seed=case.seed, **groups)
    if case.parts > 1:
        return of_busiest(tokens, case.E, case.parts, case.shared, case.seed)
    everyone = tuple(range(case.E, case.E + case.shared))
    return tuple(experts + everyone for experts in tokens)


@cache
def tokens_per_expert(case: MoeCase) -> tuple[int, ...]:
    """Tokens by rank of expert; 0 for an expert that no token is routed to."""
    counts = [0] * case.experts
    for experts in routing(case):
        for expert in experts:
            counts[expert] += 1
    return tuple(counts)


def experts_hit(case: MoeCase) -> int:
    return sum(count > 0 for count in tokens_per_expert(case))


def of_model(model: str, batches: Iterable[int], tensor_parallel: int = 1, **more: Any) -> list[MoeCase]:
    """The routed experts of a model; with tensor parallelism, one GPU's slice of every expert."""
    shape = MODELS[model]
    E, k, H, F = shape.experts, shape.experts_per_token, shape.hidden, shape.expert_ffn // tensor_parallel
    return [MoeCase(model=model, B=B, E=E, k=k, H=H, F=F, **more) for B in batches]


QWEN3_NEXT: dict[str, Any] = {"model": "qwen3-next-80b-a3b", "E": 512, "k": 10, "H": 2048, "F": 512}
"""config.json of Qwen/Qwen3-Next-80B-A3B-Instruct."""

QWEN3_30B: dict[str, Any] = {"model": "qwen3-30b-a3b", "E": 128, "k": 8, "H": 2048, "F": 768}
"""config.json of Qwen/Qwen3-30B-A3B."""

QWEN3_235B_OF_8: dict[str, Any] = {"model": "qwen3-235b-a22b", "E": 128, "k": 8, "H": 4096, "F": 1536 // 8}
"""config.json of Qwen/Qwen3-235B-A22B-FP8: a slice for one GPU of eight is one and a half blocks of 128 wide."""


def smoke() -> Iterable[MoeCase]:
    """For a CPU: 48 MB of experts. One token reads a quarter of them, 16 tokens nearly all."""
    for B in (1, 16):
        yield MoeCase(B=B, E=8, k=2, H=1024, F=512, dtype="fp32")


def quick() -> Iterable[MoeCase]:
    """Mixtral and gpt-oss-20b whole, DeepSeek-V3 on one GPU of eight: from few experts hit to all."""
    yield from of_model("mixtral-8x7b", (1, 64))
    yield from of_model("gpt-oss-20b", (1, 16, 128))
    yield from of_model("deepseek-v3", (1, 16, 128), tensor_parallel=8)
    yield from of_model("gpt-oss-20b", (16,), routing="zipf")
    yield from of_model("gpt-oss-20b", (16,), weights="mxfp4")
    yield from of_model("deepseek-v3", (16,), tensor_parallel=8, weights="fp8_block")


def full() -> Iterable[MoeCase]:
    """Batches of four models; DeepSeek-V3 whole (22.5 GB of experts) where few experts are hit.

    In fp8, DeepSeek-V3's experts are 11.3 GB, and the words packed for the kernel are as many again. Two copies of both
    are 45 GB. To draw or pack the larger matrices of one copy takes another 15 to 23 GB for a while.
    """
    yield from of_model("mixtral-8x7b", (1, 4, 8, 16, 64, 256, 1024))
    yield from of_model("gpt-oss-20b", (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024))
    yield from of_model("gpt-oss-120b", (1, 4, 16, 64, 256, 1024))
    yield from of_model("deepseek-v3", (1, 4, 16, 64, 256, 1024), tensor_parallel=8)
    yield from of_model("deepseek-v3", (1, 16, 256))
    yield from of_model("gpt-oss-120b", (16, 64, 256), routing="zipf")
    yield from of_model("deepseek-v3", (16, 64, 256), tensor_parallel=8, routing="zipf")
    yield from of_model("gpt-oss-20b", (1, 16, 128), weights="mxfp4")
    yield from of_model("gpt-oss-120b", (1, 16, 256), weights="mxfp4")
    yield from of_model("deepseek-v3", (1, 16, 64), 8, weights="nvfp4")
    yield from of_model("deepseek-v3", (1, 16, 128), tensor_parallel=8, weights="fp8_block")
    yield from of_model("deepseek-v3", (1, 16), weights="fp8_block")
    for weights in ("", "int8", "fp8", "mxfp8", "int4", "int4_zp"):
        yield MoeCase(B=16, weights=weights, **QWEN3_NEXT)
    yield MoeCase(B=16, weights="fp8_block", **QWEN3_235B_OF_8)
    yield from of_model("gpt-oss-20b", (1, 16), weights="mxfp4", activation="swiglu_clamped", bias=True)
    # 32 tokens on each of 32 parts, and on each of 8
    for kind in ROUTINGS:
        served: dict[str, Any] = {"parts": 32, "shared": 1, "groups": 8, "top_groups": 4, "weights": "fp8_block"}
        yield from of_model("deepseek-v3", (1024,), routing=kind, **served)
        yield MoeCase(B=256, routing=kind, parts=8, **QWEN3_30B)


def test() -> Iterable[MoeCase]:
    """Small and edgy: one token, one expert, all experts, odd widths, several tiles of tokens for one expert."""
    for B, E, k, H, F in ((1, 4, 1, 64, 64), (3, 5, 2, 72, 40), (1, 1, 1, 128, 64), (20, 2, 2, 64, 128)):
        yield MoeCase(B=B, E=E, k=k, H=H, F=F, dtype="fp16")
    yield MoeCase(B=33, E=8, k=3, H=64, F=64, routing="zipf", dtype="fp16")
    yield MoeCase(B=4, E=16, k=4, H=64, F=48, routing="zipf", dtype="fp32")
    yield MoeCase(B=3, E=5, k=2, H=72, F=40, dtype="fp16", activation="geglu")
    yield MoeCase(B=3, E=4, k=2, H=64, F=48, dtype="fp16", shared=2)
    yield MoeCase(
        B=9, E=16, k=3, H=64, F=48, dtype="fp16", routing="lognormal", parts=4, shared=1, groups=4, top_groups=2
    )
    yield MoeCase(B=5, E=5, k=2, H=96, F=80, dtype="fp16", weights="mxfp4", activation="swiglu_clamped")
    yield MoeCase(B=4, E=5, k=2, H=96, F=80, dtype="fp16", weights="mxfp4", activation="swiglu_clamped", bias=True)
    yield MoeCase(B=3, E=4, k=2, H=72, F=40, dtype="fp16", bias=True)
    yield MoeCase(B=5, E=4, k=2, H=72, F=80, dtype="fp16", activation="relu2")
    yield MoeCase(B=3, E=4, k=2, H=96, F=80, dtype="fp16", weights="mxfp4", activation="relu2", bias=True)
    for B, H, F, weights in (
        (1, 256, 128, "fp8_block"),
        (18, 128, 256, "fp8_block"),
        (3, 192, 80, "fp8_block"),
        (18, 72, 266, "mxfp8"),
        (1, 320, 96, "mxfp4"),
        (18, 72, 266, "mxfp4"),
        (18, 72, 266, "nvfp4"),
        (2, 320, 96, "int4"),
        (18, 72, 266, "int4_zp"),
        (3, 192, 136, "int8"),
        (2, 136, 72, "fp8"),
    ):
        yield MoeCase(B=B, E=3, k=2, H=H, F=F, dtype="fp16", weights=weights)


def cases(suite: str) -> list[MoeCase]:
    """In order, each id once."""
    listed = {"smoke": smoke, "quick": quick, "full": full, "test": test}[suite]()
    return list({case.id: case for case in reversed(list(listed))}.values())[::-1]


def inputs(case: MoeCase, device: str, seed: int) -> Inputs:
    """x ~ N(0, 1); rows of weights have a length of about 1; both have marks, see `kernels/common/outliers.py`.

    Router weights are a softmax over each token's k and shared experts: of 0.2 N(0, 1), and 0.7 more for the first and
    the last expert hit. On one of several parts, where a row has one expert, they are exp of that, halved. So each of
    k = 8 experts is about a third of y's norm, and the last one hit is half of it. If a token loses an expert, one of
    the H elements of its row has a `max_rel` above 0.31: ten tolerances.

    E is the experts that are here. Packed weights are codes `[E, rows, ...]`. `w_gate_up_scale`, `w_down_scale`, for
    int4_zp the same with `_zero` and for nvfp4 with `_global` are those that `quantization.py` makes for all experts'
    rows below each other, `[E * 2F, H]` and `[E * H, F]`, where no scale is for rows of two matrices.

    `seed` also permutes the experts: other experts are hit, but as many of them, by as many tokens.
    """
    draw = RandomInputs(device, seed)
    expert = draw.python.sample(range(case.experts), case.experts)
    made: Inputs = {
        "x": draw.normal((case.rows, case.H), case.dtype),
        "topk_ids": draw.table([[expert[rank] for rank in ranks] for ranks in routing(case)]),
    }
    ids = made["topk_ids"]
    at_an_end = (ids == ids.max()) | (ids == ids.min())
    logits = draw.normal((case.rows, case.width), "fp32", scale=0.2) + 0.7 * at_an_end
    made["topk_weights"] = logits.softmax(dim=-1) if case.width > 1 else logits.exp().mul_(0.5)
    for name, N, K in (("w_gate_up", case.matrices * case.F, case.H), ("w_down", case.H, case.F)):
        if case.quantized:
            packed = random_weights(draw, case.weights, case.experts * N, K, case.dtype, height(case, name))
            made[name] = packed.pop("w").unflatten(0, (case.experts, N))
            made |= {f"{name}{part.removeprefix('w')}": tensor for part, tensor in packed.items()}
        else:
            made[name] = draw.normal((case.experts, N, K), case.dtype, scale=K**-0.5)
    if case.bias:
        made["b_gate_up"] = draw.normal((case.experts, case.matrices * case.F), case.dtype, scale=0.5)
        made["b_down"] = draw.normal((case.experts, case.H), case.dtype, scale=0.5)
    mark(case, made, draw)
    return made


def height(case: MoeCase, name: str) -> int:
    """Rows of one matrix: of gate and of up, or of down."""
    return case.F if name == "w_gate_up" else case.H


def packed_as(case: MoeCase, drawn: Inputs, name: str) -> Inputs:
    """Codes, scales and zero points of all experts' matrices, under the names of `quantization.py`."""
    parts = {part: drawn[f"{name}_{part}"] for part in BESIDE if f"{name}_{part}" in drawn}
    return {"w": drawn[name].flatten(0, 1)} | {f"w_{part}": tensor for part, tensor in parts.items()}


def mark(case: MoeCase, drawn: Inputs, draw: RandomInputs) -> None:
    """Outliers in x, and of every expert hidden dims that are large, and a first and a last output that they make."""
    columns, large = outliers.outliers(draw, case.H), outliers.hidden_rows(draw, case.F)
    size, level = outliers.CLAMPED if case.activation == "swiglu_clamped" else (0.25, 1.0)
    outliers.mark_columns(drawn["x"], columns, size, draw)

    def packed(name: str) -> Inputs:
        return packed_as(case, drawn, name) | ({"format": case.weights} if case.quantized else {})

    rows = [row + f for row in range(0, case.matrices * case.experts * case.F, case.F) for f in large]
    outliers.mark_hidden(draw, rows=rows, columns=columns, H=case.H, F=case.F, size=level, **packed("w_gate_up"))
    for matrix, f, share in outliers.beyond_limits(draw, case.activation, case.F, large):
        there = [*range(matrix * case.F + f, 2 * case.experts * case.F, 2 * case.F)]
        outliers.mark_beyond(rows=there, columns=columns, share=share, H=case.H, **packed("w_gate_up"))
    if case.activation == "swiglu_clamped" and case.quantized:
        drawn["x"].div_(outliers.size_of(rows=rows, H=case.H, F=case.F, **packed("w_gate_up")))
    ends = [e * case.H + n for e in range(case.experts) for n in (0, case.H - 1)]
    outliers.mark_outputs(rows=ends, columns=large, H=case.H, F=case.F, **packed("w_down"))


def expert_weights(case: MoeCase, inputs: Inputs, name: str, e: int) -> torch.Tensor:
    """One expert's matrix in fp32."""
    w = inputs[name]
    if not case.quantized:
        return w[e].float()
    rows = w.shape[1]
    return dequantize(case.weights, packed_as(case, inputs, name), e * rows, (e + 1) * rows, height(case, name))


def reference(case: MoeCase, inputs: Inputs) -> torch.Tensor:
    """Computed in fp32, expert by expert."""
    import torch

    x, ids, weights = inputs["x"].float(), inputs["topk_ids"], inputs["topk_weights"]
    y = torch.zeros_like(x)
    for e in sorted(set(ids.flatten().tolist())):
        token, slot = (ids == e).nonzero(as_tuple=True)
        first = x[token] @ expert_weights(case, inputs, "w_gate_up", e).T
        first = first + inputs["b_gate_up"][e].float() if case.bias else first
        gate, up = gated.halves(case.activation, first)
        down = gated.hidden(case.activation, gate, up) @ expert_weights(case, inputs, "w_down", e).T
        if case.bias:
            down = down + inputs["b_down"][e].float()
        y.index_add_(0, token, down * weights[token, slot, None])
    return y


def work(case: MoeCase) -> Work:
    """The experts hit, x, ids, router weights and y once; 6 H F FLOP per (token, expert) pair, 4 without a gate."""
    size = BYTES[case.dtype]
    activations = size * case.rows * case.H
    return Work(
        flops={
            "fma_fp32" if case.dtype == "fp32" else "mma_bf16": 2 * (case.matrices + 1) * case.pairs * case.H * case.F
        },
        bytes_read=experts_hit(case) * case.expert_bytes + activations + 8 * case.pairs,
        bytes_written=activations,
    )


def tolerance(case: MoeCase) -> Tolerance:
    why = "gate, up, the activation, their product, each expert's output and y are each rounded once to the type"
    return rounded_ffn(case.dtype, rows=case.rows, hidden_values=case.pairs * case.F, why=why)


def smaller(case: MoeCase, n: int) -> MoeCase:
    """Fewer experts for fewer tokens, each with as many tokens as before, then shorter rows."""
    few, fewest = case, max(case.k, case.parts, case.groups)
    while few.B > 1 and fewest <= few.E // 2 and work(few).bytes > work(case).bytes / n:
        few = replace(few, E=few.E // 2, B=few.B // 2)
    return fewer(few, cdiv(n * work(few).bytes, work(case).bytes), F=128, H=256)


OP = Op(
    name="moe_ffn",
    title="MoE",
    role="decode",
    about="routed experts of a mixture-of-experts layer, reading only the experts that are hit",
    formula="y[b] = sum_j weight[b,j] Wd_e a(Wg_e x[b], Wu_e x[b]), e = id[b,j], a(g,u) = silu(g) u",
    case_type=MoeCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x", "topk_ids", "topk_weights"),
    smaller=smaller,
)
