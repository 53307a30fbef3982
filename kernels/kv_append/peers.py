"""The same write by torch: it computes the slots on the device, then one `index_put_` for K and one for V."""

from __future__ import annotations

from kernels.common import paging
from kernels.common.random_inputs import BYTES
from kernels.kv_append.op import AppendCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version


def stages(case: AppendCase, target: Target) -> tuple[Stage, ...]:
    """A few kernels over B numbers, which stay in the L2, and two scattered writes."""
    compulsory = work(case)
    rows = case.B * case.H_kv * case.D * BYTES[case.dtype]
    index = Work(bytes_read=compulsory.bytes_read - 2 * rows)
    put = Work(bytes_read=rows, bytes_written=rows)
    numbers = 8 * case.B
    return (
        Stage(name="slots", work=index, l2_bytes=4 * numbers),
        *(Stage(name=f"put {name}", work=put, l2_bytes=2 * numbers) for name in "kv"),
    )


def supports(case: AppendCase, target: Target) -> str | None:
    return "needs every sequence to write: torch has no index that means nowhere" if case.idle else None


def prepare(case: AppendCase, inputs: Inputs, target: Target) -> Launch:
    """The launch computes everything that depends on `lengths` and `block_table`, since they change every step."""
    import torch

    table, lengths = inputs["block_table"], inputs["lengths"]
    eight_bit = case.dtype == "fp8"
    k, v, kv = (inputs[name].view(torch.uint8) if eight_bit else inputs[name] for name in ("k", "v", "kv"))
    halves = [paging.nhd(kv[half], case.layout) for half in range(2)]
    sequences = torch.arange(case.B, device=kv.device)
    column, slot, page = (torch.empty_like(sequences) for _ in range(3))
    entry = torch.empty(case.B, 1, dtype=table.dtype, device=kv.device)

    def append() -> torch.Tensor:
        torch.remainder(lengths, case.tokens_per_page, out=slot)
        if case.page:
            torch.div(lengths, case.page, rounding_mode="floor", out=column)
            torch.gather(table, 1, column[:, None], out=entry)
            page.copy_(entry[:, 0])
        else:
            page.copy_(sequences)
        for stored, new in zip(halves, (k, v), strict=True):
            stored.index_put_((page, slot), new)
        return inputs["kv"]

    return append


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
