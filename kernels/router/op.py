"""ids[b] = the k experts of token b with the largest scores, weights[b] = what each of them counts.

logits [B, E] are those of the router's product. The scores are softmax(logits) or sigmoid(logits). With `bias`, a
softmax is of logits[b] + bias, the bias of that product (gpt-oss). Weights are the
scores of the chosen, divided by their sum where they are renormalized, times `scaling`. With `groups` (DeepSeek-V3) the
experts are so many equal groups. A group's score is the sum of its two best, and only the experts of the `top_groups`
best groups are chosen from. Scores by sigmoid are chosen by score + bias[e]; the bias is not part of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common.fields import Count, Dtype, OneOf
from kernels.common.random_inputs import BYTES, RandomInputs, torch_dtype
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

BEST_OF_GROUP = 2
"""The score of a group is the sum of so many of its experts' (`group_scores` of DeepSeek-V3's model.py)."""


@dataclass(frozen=True, kw_only=True)
class RouterCase(Case):
    """`dtype` is the type of the logits; ids are int32 and weights fp32 [B, k]."""

    PLAIN: ClassVar[Mapping[str, Any]] = {}

    B: int
    E: int
    k: int
    score: Annotated[str, OneOf("softmax", "sigmoid")] = "softmax"
    renormalize: bool = True
    bias: bool = False
    groups: Count = 0
    top_groups: Count = 0
    scaling: float = 1.0
    dtype: Dtype = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.E:
            raise ValueError(f"k = {self.k}: at most the E = {self.E} experts")
        if self.E > LEVELS:
            raise ValueError(f"E = {self.E}: at most {LEVELS} experts")
        if bool(self.groups) != bool(self.top_groups) or self.top_groups > self.groups:
            raise ValueError(f"top_groups {self.top_groups}: some of the {self.groups} groups, and 0 without groups")
        if self.groups:
            each = self.E // self.groups
            if self.E % self.groups or each < BEST_OF_GROUP or self.k > each * self.top_groups:
                raise ValueError(
                    f"groups {self.groups}: they divide E = {self.E} into two experts or more each, and the "
                    f"{self.top_groups} best hold k = {self.k}"
                )
        if self.scaling == 0:
            raise ValueError("scaling is 0: all weights would be")
        if self.score == "sigmoid" and self.bias:
            raise ValueError("bias: scores of a sigmoid have their own, by which experts are chosen")
        if self.bias and self.E > WITH_BIAS:
            raise ValueError(f"E = {self.E}: at most {WITH_BIAS} experts with a bias")

    @property
    def has_bias(self) -> bool:
        return self.bias or self.score == "sigmoid"

    @property
    def id(self) -> str:
        parts = [f"B{self.B}-E{self.E}k{self.k}-{self.score}"]
        parts += ["bias"] if self.bias else []
        parts += [] if self.renormalize else ["asis"]
        parts += [f"groups{self.groups}of{self.top_groups}"] if self.groups else []
        parts += [f"x{self.scaling:g}"] if self.scaling != 1 else []
        return "-".join([*parts, self.dtype])


WITH_BIAS = 480
"""So many sums of logits and bias are sixteenths that bf16 has, and so are the logits."""

LEVELS = 1024
"""So many distinct logits are drawn from: bf16's from 2^-6 to 4, every second one, and their negatives."""

DEEPSEEK: dict[str, Any] = {"score": "sigmoid", "groups": 8, "top_groups": 4, "scaling": 2.5, "dtype": "fp32"}
"""config.json of deepseek-ai/DeepSeek-V3: `n_group`, `topk_group`, `routed_scaling_factor`. Logits are fp32 there."""


def of_model(model: str, B: int, **more: Any) -> RouterCase:
    shape = MODELS[model]
    return RouterCase(model=model, B=B, E=shape.experts, k=shape.experts_per_token, **more)


def cases(suite: str) -> list[RouterCase]:
    if suite == "smoke":
        return []
    if suite == "quick":
        return [of_model("deepseek-v3", 64, **DEEPSEEK)]
    if suite == "full":
        return [
            *(of_model("mixtral-8x7b", B) for B in (1, 64)),
            *(of_model("gpt-oss-120b", B, bias=True) for B in (1, 64, 256)),
            *(of_model("deepseek-v3", B, **DEEPSEEK) for B in (1, 64, 256)),
            RouterCase(B=64, E=512, k=10, model="qwen3-next-80b-a3b"),
        ]
    return [
        RouterCase(B=5, E=8, k=2, dtype="fp16"),
        RouterCase(B=2, E=60, k=4, renormalize=False, dtype="fp32"),
        RouterCase(B=3, E=24, k=4, bias=True, dtype="fp16"),
        RouterCase(B=3, E=32, k=4, **DEEPSEEK),
        RouterCase(B=3, E=20, k=3, score="sigmoid", renormalize=False, dtype="fp32"),
    ]


def inputs(case: RouterCase, device: str, seed: int) -> Inputs:
    """Logits of a token are all different, and so far apart that no rounding changes which are the largest.

    For a softmax they are numbers that bf16 has, and `bias` is [0]. With a bias, sums of both are sixteenths in random
    order, and the bias, in the type of the logits, is -8 to 8 sixteenths. For a sigmoid, experts are chosen by
    0.3 + 0.6 (level + g / 16) / E, with the levels 0 to E - 1 in random order and g the expert's group, counted modulo
    8. So neighbours are 0.3/E apart, and the sums of two from different groups 0.07/E. The bias is 0 to 1/4.
    """
    import torch

    draw = RandomInputs(device, seed)
    shape, E = (case.B, case.E), case.E
    biased = case.score == "sigmoid"
    if device == "meta":
        logits = torch.empty(shape, dtype=torch_dtype(case.dtype), device=device)
        kind = torch_dtype("fp32" if biased else case.dtype)
        return {"logits": logits, "bias": torch.empty(E if case.has_bias else 0, dtype=kind, device=device)}
    order = torch.rand((case.B, LEVELS if not biased else E), generator=draw._generator, device=device).argsort(1)
    if case.bias:
        sums = (torch.rand(shape, generator=draw._generator, device=device).argsort(1) - E // 2) / 16
        bias = (5 * torch.arange(E, device=device) % 17 - 8) / 16  # the same for every seed, so that sums never tie
        return {name: each.to(torch_dtype(case.dtype)) for name, each in (("logits", sums - bias), ("bias", bias))}
    if not biased:
        level, step = order[:, :E], order[:, :E] % 512
        size = 2.0 ** (step // 64 - 6) * (1 + step % 64 / 64)
        values = torch.where(level < 512, size, -size)
        return {"logits": values.to(torch_dtype(case.dtype)), "bias": torch.empty(0, device=device)}
    bias = draw.normal((E,), "fp32").abs().clamp(max=1) / 4
    group = torch.arange(E, device=device) // (E // case.groups) % 8 if case.groups else 0
    chosen_by = 0.3 + (order + group / 16) / E * 0.6
    share = (chosen_by - bias).clamp(min=0.01).double()
    return {"logits": torch.log(share / (1 - share)).to(torch_dtype(case.dtype)), "bias": bias}


def output(case: RouterCase, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One tensor, int32 [2, B, k]; and its halves as ids (int32) and weights (fp32) [B, k]."""
    import torch

    whole = torch.empty(2, case.B, case.k, dtype=torch.int32, device=device)
    return whole, whole[0], whole[1].view(torch.float32)


def decoded(case: RouterCase, found: torch.Tensor) -> torch.Tensor:
    """[B, E]: the weight of each expert, 0 for those that are not chosen. A token with an id that no expert has, or
    with an expert twice, has NaN."""
    import torch

    ids, weights = found[0].long(), found[1].contiguous().view(torch.float32)
    known = (ids >= 0) & (ids < case.E)
    at = torch.where(known, ids, case.E)
    count = torch.zeros(case.B, case.E + 1, device=found.device)
    spread = count.scatter(1, at, weights)
    count.scatter_add_(1, at, torch.ones_like(weights))
    wrong = ~known.all(1, keepdim=True) | (count > 1).any(1, keepdim=True)
    return spread[:, : case.E].masked_fill(wrong, float("nan"))


def reference(case: RouterCase, inputs: Inputs) -> torch.Tensor:
    """[B, E] in fp64, by sorting."""
    import torch

    wide = inputs["logits"].double()
    if case.bias:
        wide = wide + inputs["bias"].double()
    scores = wide.softmax(1) if case.score == "softmax" else 1 / (1 + torch.exp(-wide))
    chosen_by = scores + inputs["bias"].double() if case.score == "sigmoid" else scores
    if case.groups:
        grouped = chosen_by.view(case.B, case.groups, -1)
        best = grouped.sort(-1, descending=True).values[..., :BEST_OF_GROUP].sum(-1)
        rank = best.argsort(1, descending=True).argsort(1)
        chosen_by = grouped.masked_fill((rank >= case.top_groups)[..., None], float("-inf")).view(case.B, -1)
    mine = chosen_by.argsort(1, descending=True).argsort(1) < case.k
    weights = torch.where(mine, scores, 0.0)
    return (weights / weights.sum(1, keepdim=True) if case.renormalize else weights) * case.scaling


def work(case: RouterCase) -> Work:
    """Logits and bias once, ids and weights once; an exponential, a sum and k comparisons for each logit."""
    biased = case.E * (4 if case.score == "sigmoid" else BYTES[case.dtype]) * case.has_bias
    return Work(
        flops={"fma_fp32": case.B * case.E * (2 + case.k)},
        bytes_read=case.B * case.E * BYTES[case.dtype] + biased,
        bytes_written=8 * case.B * case.k,
    )


def tolerance(case: RouterCase) -> Tolerance:
    return Tolerance(max_rel=1e-4, rms_rel=1e-5, why="fp32 exponentials and sums, whatever type the logits have")


def poison(case: RouterCase, inputs: Inputs, found: torch.Tensor) -> None:
    """-1: no expert, and NaN as a weight."""
    found.fill_(-1)


OP = Op(
    name="router",
    title="routing",
    role="decode",
    about="the choice of each token's experts, and their weights",
    formula="ids = top k of softmax(logits) or sigmoid(logits) + bias; weights = their scores / sum",
    case_type=RouterCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("logits",),
    poison=poison,
    decoded=decoded,
)
