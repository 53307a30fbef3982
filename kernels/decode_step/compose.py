"""The step from the implementations of its operations: what each of them reads, and where its output goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from kernels.attention_decode.op import AttentionCase
from kernels.common.quantization import BESIDE
from kernels.common.random_inputs import BYTES
from kernels.decode_step.inputs import angles, head_of
from kernels.decode_step.op import StepCase
from kernels.decode_step.parts import OUTSIDE, Part, parts
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.op import Impl, Inputs, Stage, Target, implementations
from kernels.rmsnorm.op import NormCase
from kernels.rope_append.op import RopeCase, cache_of, q_of

if TYPE_CHECKING:
    import torch

Names = Mapping[str, Sequence[str]]
"""For each operation, the implementations to take: the first one that supports the case."""


class Kernels(Protocol):
    """How the parts of a step are run: each call prepares one and returns the tensor that its launch fills."""

    def run(self, part: Part, given: Inputs) -> torch.Tensor: ...

    def look_up(self, tokens: torch.Tensor, table: torch.Tensor, factor: float) -> torch.Tensor:
        """Rows of the embedding times `factor`."""
        ...

    def choose(self, logits: torch.Tensor, out: torch.Tensor) -> None:
        """The place of each row's largest logit."""
        ...


class Composition:
    """One step being put together."""

    def __init__(self, case: StepCase, inputs: Inputs, kernels: Kernels) -> None:
        self.case, self.inputs, self.kernels = case, inputs, kernels
        self.parts = {(part.layer, part.name): part for part in parts(case)}

    def part(self, layer: int, name: str) -> Any:
        return self.parts[layer, name].case

    def run(self, layer: int, name: str, **given: Any) -> torch.Tensor:
        return self.kernels.run(self.parts[layer, name], given)

    def product(self, layer: int, name: str, x: torch.Tensor, stored: str = "") -> torch.Tensor:
        import torch

        stored = stored or f"{layer}.{name}"
        packed = {f"w_{p}": self.inputs[f"{stored}_{p}"] for p in BESIDE if f"{stored}_{p}" in self.inputs}
        none = torch.empty(0, dtype=torch.float32, device=x.device)
        return self.run(layer, name, x=x, w=self.inputs[stored], x_scale=none, **packed)

    def norm(self, layer: int, name: str, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[Any, Any]:
        """The normalized sum of x and the residual, and the sum; without a residual x itself."""
        case: NormCase = self.part(layer, name)
        given = {"x": x, "w": self.inputs[name if layer == OUTSIDE else f"{layer}.{name}"]}
        if residual is None:
            return self.run(layer, name, **given), x
        rows = self.run(layer, name, **given, residual=residual)
        return rows[: case.B], rows[case.B :]

    def attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """What attention adds to the residual."""
        import torch

        case, inputs = self.case, self.inputs
        rope: RopeCase = self.part(layer, "kv_append")
        attention: AttentionCase = self.part(layer, "attention")
        qkv = self.product(layer, "qkv", x).view(case.B, rope.heads, rope.D)
        memory = self.run(
            layer,
            "kv_append",
            qkv=qkv,
            bias=inputs[f"{layer}.bias"].view(-1, rope.D),
            memory=inputs[f"{layer}.memory"],
            q_weight=inputs[f"{layer}.q_norm"],
            k_weight=inputs[f"{layer}.k_norm"],
            rotations=angles(case, inputs, layer),
            block_table=inputs["block_table"],
            lengths=inputs["positions"],
        )
        cache, none = cache_of(rope, memory), torch.empty(0, dtype=torch.float32, device=x.device)
        o = self.run(
            layer,
            "attention",
            q=q_of(rope, memory).view(case.B, 1, rope.H_q, rope.D),
            k=cache[0],
            v=cache[1],
            k_scale=none,
            v_scale=none,
            block_table=inputs["block_table"],
            lengths=inputs["lengths"],
            sink_logits=none,
        )
        y = self.product(layer, "o", o.view(case.B, attention.H_q * attention.D))
        return self.norm(layer, "attention_post_norm", y, None)[0] if wiring_of(case.model).post_norms else y

    def ffn(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """What the FFN or the experts add to the residual."""
        import torch

        case, inputs = self.case, self.inputs
        if shape_of(case.model).is_moe:
            found = self.run(
                layer,
                "route",
                logits=self.product(layer, "router", x),
                bias=torch.empty(0, dtype=torch.float32, device=x.device),
            )
            matrices = {f"w_{n}": inputs[f"{layer}.experts_{n}"] for n in ("gate_up", "down")}
            for name in (f"{matrix}_{part}" for matrix in ("gate_up", "down") for part in BESIDE):
                if f"{layer}.experts_{name}" in inputs:
                    matrices[f"w_{name}"] = inputs[f"{layer}.experts_{name}"]
            weights = found[1].view(torch.float32)
            y = self.run(layer, "experts", x=x, topk_ids=found[0], topk_weights=weights, **matrices)
        elif case.quantized:
            gate_up = self.product(layer, "gate_up", x)
            y = self.product(layer, "down", self.run(layer, "activation", x=gate_up))
        else:
            matrices = {f"w_{name}": inputs[f"{layer}.{name}"] for name in ("gate", "up", "down")}
            y = self.run(layer, "ffn", x=x, **matrices)
        return self.norm(layer, "ffn_post_norm", y, None)[0] if wiring_of(case.model).post_norms else y

    def logits(self) -> torch.Tensor:
        """The whole step; also writes the next tokens into `next`."""
        case, inputs = self.case, self.inputs
        factor = shape_of(case.model).hidden ** 0.5 if wiring_of(case.model).scaled_embedding else 1.0
        new, x = self.kernels.look_up(inputs["tokens"], inputs["embedding"], factor), None
        for layer in range(case.measured_layers):
            y, x = self.norm(layer, "attention_norm", new, x)
            new = self.attention(layer, y)
            y, x = self.norm(layer, "ffn_norm", new, x)
            new = self.ffn(layer, y)
        y, _ = self.norm(OUTSIDE, "final_norm", new, x)
        logits = self.product(OUTSIDE, "lm_head", y, stored=head_of(case))
        self.kernels.choose(logits, inputs["next"])
        return logits


# ---- which implementations


@cache
def impls_of(op: str) -> dict[str, Impl]:
    return {impl.name: impl for impl in implementations(op)[0]}


def chosen(part: Part, names: Names, target: Target) -> tuple[Impl | None, str]:
    """The implementation of a part, or None and why there is none."""
    why = "no implementation of that name is here"
    for name in names.get(part.op, ()):
        impl = impls_of(part.op).get(name)
        if impl is None:
            continue
        refusal = impl.supports(part.case, target)
        if refusal is None:
            return impl, ""
        why = refusal
    return None, why


def distinct(case: StepCase) -> dict[tuple[str, Any], Part]:
    """The parts with different cases; layers repeat them."""
    found: dict[tuple[str, Any], Part] = {}
    for part in parts(case):
        if part.case:
            found.setdefault((part.op, part.case), part)
    return found


def refusal(case: StepCase, names: Names, target: Target) -> str | None:
    """The first reason why a part of the step has no implementation."""
    for part in distinct(case).values():
        if part.op in names:
            impl, why = chosen(part, names, target)
            if impl is None:
                return f"its {part.name}: {why}"
    return None


def stages(case: StepCase, names: Names, target: Target, others: Mapping[str, Any] | None = None) -> tuple[Stage, ...]:
    """The stages of all parts; `others` gives those of operations that `names` lacks, by a function of the part."""
    known: dict[tuple[str, Any], tuple[Stage, ...]] = {}
    for key, part in distinct(case).items():
        if part.op in names:
            impl, _ = chosen(part, names, target)
            assert impl
            known[key] = tuple(impl.stages(part.case, target))
        else:
            known[key] = (others or {})[part.op](part)
    found = []
    for part in parts(case):
        own = known[part.op, part.case] if part.case else (own_stage(part, case),)
        prefix = part.name if part.layer == OUTSIDE else f"{part.layer}.{part.name}"
        found += [replace(stage, name=f"{prefix} {stage.name}" if part.case else prefix) for stage in own]
    return tuple(found)


def own_stage(part: Part, case: StepCase) -> Stage:
    """Embedding and sampling: one CTA a sequence. Logits were just written and come from the L2."""
    work = part.work
    if part.name == "sampling":
        again = case.B * shape_of(case.model).vocab * BYTES[case.dtype]
        return Stage(name=part.name, work=work, l2_bytes=again, ctas=case.B, ctas_per_sm=1)
    return Stage(name=part.name, work=work, ctas=case.B, ctas_per_sm=8, loads_before={"dram": 1})
