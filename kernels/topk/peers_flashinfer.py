"""FlashInfer's radix top-k (`flashinfer.top_k`), whose results are in no order unless they are sorted."""

from __future__ import annotations

from kernels.common import flashinfer_needs
from kernels.op import Impl, Inputs, Launch, Target
from kernels.topk.op import TopkCase
from kernels.topk.peers import new_output, topk_stages, topk_supports, written


def supports(case: TopkCase, target: Target) -> str | None:
    return flashinfer_needs.missing(target) or topk_supports(case, target)


def prepare(case: TopkCase, inputs: Inputs, target: Target) -> Launch:
    import flashinfer

    scores = inputs["scores"]
    out, by_value = new_output(case, scores), case.order == "value"
    return lambda: written(case, scores, flashinfer.top_k(scores, case.k, sorted=by_value)[1], out)


IMPLS = (
    Impl(
        name="flashinfer",
        stages=topk_stages,
        prepare=prepare,
        supports=supports,
        version=flashinfer_needs.version,
    ),
)
