"""Parts that are Python calls, run one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kernels.decode_step import compose
from kernels.decode_step.parts import Part
from kernels.launch import PartedLaunch
from kernels.op import Inputs, Launch, Target

if TYPE_CHECKING:
    import torch


class Sequence:
    """Collects the launches of all parts in order, each with the name of its part.

    A launch may return another tensor each time. Then its result is copied into the tensor that the next part reads.
    `others` prepares the parts of operations that `names` lacks.
    """

    def __init__(
        self, names: compose.Names, target: Target, others: dict[str, Callable[..., Launch]] | None = None
    ) -> None:
        self.names, self.target, self.others = names, target, others or {}
        self.calls: list[tuple[str, Callable[[], Any]]] = []

    def launch(self, output: torch.Tensor) -> PartedLaunch:
        return PartedLaunch(parts=tuple(self.calls), output=output)

    def run(self, part: Part, given: Inputs) -> torch.Tensor:
        if part.op in self.others:
            prepare = self.others[part.op]
        else:
            impl, why = compose.chosen(part, self.names, self.target)
            assert impl, why
            prepare = impl.prepare
        launch = prepare(part.case, given, self.target)
        first, second = launch(), launch()
        if first.data_ptr() == second.data_ptr():
            self.calls.append((part.name, launch))
            return first
        kept = first.clone()
        self.calls.append((part.name, lambda: kept.copy_(launch())))
        return kept

    def look_up(self, tokens: torch.Tensor, table: torch.Tensor, factor: float) -> torch.Tensor:
        import torch

        x = table.new_empty(len(tokens), table.shape[1])

        def launch() -> None:
            torch.index_select(table, 0, tokens, out=x)
            if factor != 1:
                x.mul_(factor)

        launch()
        self.calls.append(("embedding", launch))
        return x

    def choose(self, logits: torch.Tensor, out: torch.Tensor) -> None:
        import torch

        self.calls.append(("sampling", lambda: torch.argmax(logits, dim=1, out=out)))
