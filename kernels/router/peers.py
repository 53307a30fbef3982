"""Routing by torch, operator by operator as model code is written, and compiled by torch.compile."""

from __future__ import annotations

from functools import cache
from typing import Any

from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.router.op import BEST_OF_GROUP, RouterCase, output, work


def names(case: RouterCase) -> list[str]:
    """The operators after the first, which reads the logits."""
    groups = ["group top-k", "sum", "top groups", "mask", "fill"] if case.groups else []
    bias = ["bias", "gather"] if case.score == "sigmoid" else []
    return [*bias, *groups, "top-k", *(["sum", "divide"] if case.renormalize else []), "scale"]


def stages(case: RouterCase, target: Target) -> tuple[Stage, ...]:
    """A kernel for each operator. What passes between them stays in the L2."""
    logits = 4 * case.B * case.E
    return (
        Stage(name=case.score, work=work(case)),
        *(Stage(name=name, work=Work(), l2_bytes=2 * logits) for name in names(case)),
    )


def one_pass(case: RouterCase, target: Target) -> tuple[Stage, ...]:
    """One kernel, taken to move the compulsory bytes."""
    return (Stage(name="router", work=work(case)),)


def route(logits: Any, bias: Any, k: int, groups: int, top_groups: int, renormalize: bool, scaling: float) -> Any:
    """Weights and ids, in fp32 and int64."""
    import torch

    wide = logits.float()
    scores = wide.sigmoid() if len(bias) else wide.softmax(-1)
    chosen_by = scores + bias if len(bias) else scores
    if groups:
        grouped = chosen_by.view(len(logits), groups, -1)
        best = grouped.topk(BEST_OF_GROUP, dim=-1).values.sum(-1).topk(top_groups, dim=-1).indices
        left_out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, False)
        chosen_by = grouped.masked_fill(left_out[..., None], float("-inf")).flatten(1)
    ids = chosen_by.topk(k, dim=-1).indices
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scaling, ids


def launch_of(case: RouterCase, inputs: Inputs, function: Any) -> Launch:
    """Copies ids and weights into one tensor, which a user need not do."""
    whole, ids, weights = output(case, inputs["logits"].device)
    given = (inputs["logits"], inputs["bias"], case.k, case.groups, case.top_groups, case.renormalize, case.scaling)

    def launch() -> Any:
        found_weights, found = function(*given)
        weights.copy_(found_weights)
        ids.copy_(found)
        return whole

    return launch


def prepare(case: RouterCase, inputs: Inputs, target: Target) -> Launch:
    return launch_of(case, inputs, route)


@cache
def compiled() -> Any:
    import torch

    return torch.compile(route, dynamic=False, fullgraph=True)


def prepare_compiled(case: RouterCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    launch = launch_of(case, inputs, compiled())
    with torch._dynamo.config.patch(recompile_limit=1 << 10):
        launch()
    return launch


def supports_compiled(case: RouterCase, target: Target) -> str | None:
    fits = target.kind == "cuda" and target.sm >= 80
    return None if fits else "is compiled for NVIDIA GPUs of sm_80 or later"


IMPLS = (
    Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),
    Impl(
        name="torch-compiled",
        stages=one_pass,
        prepare=prepare_compiled,
        supports=supports_compiled,
        by_torch_compile=True,
        version=torch_version,
    ),
)
