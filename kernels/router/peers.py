"""Routing by torch, operator by operator as model code is written."""

from __future__ import annotations

from typing import Any

from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.router.op import BEST_OF_GROUP, RouterCase, output, work


def names(case: RouterCase) -> list[str]:
    """The operators after the first, which reads the logits."""
    groups = ["group top-k", "sum", "top groups", "mask", "fill"] if case.groups else []
    bias = ["bias", "gather"] if case.score == "sigmoid" else ["bias"] if case.bias else []
    return [*bias, *groups, "top-k", *(["sum", "divide"] if case.renormalize else []), "scale"]


def stages(case: RouterCase, target: Target) -> tuple[Stage, ...]:
    """A kernel for each operator. What passes between them stays in the L2."""
    logits = 4 * case.B * case.E
    return (
        Stage(name=case.score, work=work(case)),
        *(Stage(name=name, work=Work(), l2_bytes=2 * logits) for name in names(case)),
    )


def route(case: RouterCase, logits: Any, bias: Any) -> Any:
    """Weights and ids, in fp32 and int64."""
    import torch

    if case.score == "sigmoid":
        scores = logits.float().sigmoid()
        chosen_by = scores + bias
    else:
        chosen_by = scores = (logits + bias if case.bias else logits).float().softmax(-1)
    if case.groups:
        grouped = chosen_by.view(len(logits), case.groups, -1)
        best = grouped.topk(BEST_OF_GROUP, dim=-1).values.sum(-1).topk(case.top_groups, dim=-1).indices
        left_out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, False)
        chosen_by = grouped.masked_fill(left_out[..., None], float("-inf")).flatten(1)
    ids = chosen_by.topk(case.k, dim=-1).indices
    weights = scores.gather(1, ids)
    if case.renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * case.scaling, ids


def prepare(case: RouterCase, inputs: Inputs, target: Target) -> Launch:
    """Copies ids and weights into one tensor, which a user need not do."""
    whole, ids, weights = output(case, inputs["logits"].device)

    def launch() -> Any:
        found_weights, found = route(case, inputs["logits"], inputs["bias"])
        weights.copy_(found_weights)
        ids.copy_(found)
        return whole

    return launch


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
