"""The step from the implementations of its operations: what each of them reads, and where its output goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from kernels.attention_decode.op import AttentionCase
from kernels.common.quantization import BESIDE
from kernels.common.random_inputs import BYTES
from kernels.decode_step import low_rank, states
from kernels.decode_step.blocks import attends, feeds, mixes, stateful
from kernels.decode_step.inputs import angles, embedding_factor, head_of
from kernels.decode_step.op import StepCase
from kernels.decode_step.parts import OUTSIDE, Part, in_one, parts, prefix_of, routed
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.latent_append.op import LatentCase
from kernels.latent_append.op import cache_of as latents_of
from kernels.latent_append.op import q_of as latents_q
from kernels.op import Impl, Inputs, Stage, Target, implementations
from kernels.rmsnorm.op import NormCase
from kernels.rope_append.op import RopeCase, cache_of, q_of
from kernels.state_update.cases import StateCase
from kernels.state_update.memory import y_of

if TYPE_CHECKING:
    import torch

ATTENTION = ("attention_decode", "mla_decode")
OPS = (
    *("rmsnorm", "ffn_gemv", "rope_append", "latent_append", "head_gemv", *ATTENTION),
    *("ffn_block", "silu_mul", "router", "moe_ffn", "state_update", "short_conv"),
)
"""The operations of `kernels/` that steps consist of."""

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

    def norm(self, layer: int, name: str, new: Sequence[torch.Tensor], x: torch.Tensor | None) -> tuple[Any, Any]:
        """The normalized sum of x and what is new, and the sum; without x what is new itself."""
        case: NormCase = self.part(layer, name)
        given = {"x": new[0], "w": self.inputs[name if layer == OUTSIDE else f"{layer}.{name}"]}
        if x is None:
            return self.run(layer, name, **given), new[0]
        if case.addend:
            given["addend"] = self.inputs[f"{layer}.o_bias"] if case.addend == "bias" else new[1]
        if case.addend == "shares":
            given["share"] = new[2]
        rows = self.run(layer, name, **given, residual=x)
        return rows[: case.B], rows[case.B :]

    def mixer(self, layer: int, x: torch.Tensor) -> list[torch.Tensor]:
        """What attention adds to the residual, less the bias of its last product, then what a state mixer does."""
        attention = self.latent_attention if shape_of(self.case.model).is_mla else self.attention
        found = [attention(layer, x)] if attends(self.case, layer) else []
        return [*found, self.state(layer, x)] if stateful(self.case, layer) else found

    def state(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        case: StateCase = self.part(layer, "state")
        if case.apart:
            return low_rank.mix(self, layer, x)
        mixed = self.product(layer, "state_in", x)
        tokens, z = mixed[:, None, : case.width], mixed[:, case.width :]
        memory = self.run(layer, "state", tokens=tokens, **states.update_inputs(self.case, self.inputs, layer))
        y = y_of(case, memory)
        if wiring_of(self.case.model).state_norm:
            norm: NormCase = self.part(layer, "state_norm")
            w = self.inputs[f"{layer}.state_norm"]
            gated = self.run(layer, "state_norm", x=y.view(norm.rows, norm.D), z=z, w=w)
        else:
            gated = self.run(layer, "state_gate", x=z, up=y.view(self.case.B, -1))
        return self.product(layer, "state_out", gated.view(self.case.B, -1))

    def attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        import torch

        case, inputs = self.case, self.inputs
        rope: RopeCase = self.part(layer, "kv_append")
        attention: AttentionCase = self.part(layer, "attention")
        mixed, columns = self.product(layer, "qkv", x), rope.heads * rope.D
        qkv, gate = mixed[:, :columns].unflatten(1, (rope.heads, rope.D)), mixed[:, columns:]
        of_cache = {n: inputs[f"{layer}.{n}"] for n in ("k_scale", "v_scale")} if case.kv else {}
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
            **of_cache,
        )
        cache, none = cache_of(rope, memory), torch.empty(0, dtype=torch.float32, device=x.device)
        o = self.run(
            layer,
            "attention",
            q=q_of(rope, memory).view(case.B, 1, rope.H_q, rope.D),
            k=cache[0],
            v=cache[1],
            k_scale=of_cache.get("k_scale", none),
            v_scale=of_cache.get("v_scale", none),
            k_global=none,
            v_global=none,
            block_table=inputs["block_table"],
            lengths=inputs["lengths"],
            sink_logits=inputs[f"{layer}.sink_logits"],
        )
        o = o.view(case.B, attention.H_q * attention.D)
        o = self.run(layer, "attention_gate", x=gate, up=o) if gate.shape[1] else o
        y = self.product(layer, "o", o)
        return self.norm(layer, "attention_post_norm", [y], None)[0] if wiring_of(case.model).post_norms else y

    def latent_attention(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """The same with latents (MLA)."""
        import torch

        inputs, B = self.inputs, self.case.B
        latent: LatentCase = self.part(layer, "kv_append")
        qkv = self.product(layer, "qkv", x)
        rank = qkv.shape[1] - latent.L - latent.R
        q = qkv[:, :rank]
        if shape_of(self.case.model).q_latent:
            q = self.product(layer, "q_b", self.norm(layer, "q_norm", [q], None)[0])
        q = q.unflatten(1, (latent.H, latent.D + latent.R))
        memory = self.run(
            layer,
            "kv_append",
            q=q,
            kv=qkv[:, rank:],
            weight=inputs[f"{layer}.latent_norm"],
            memory=inputs[f"{layer}.memory"],
            rotations=inputs["rotations"],
            block_table=inputs["block_table"],
            lengths=inputs["positions"],
        )
        q_latent = self.run(layer, "kv_b_keys", x=q[..., : latent.D], w=inputs[f"{layer}.kv_b_keys"])
        none = torch.empty(0, dtype=torch.float32, device=x.device)
        o = self.run(
            layer,
            "attention",
            q_latent=q_latent[:, None],
            q_rope=latents_q(latent, memory)[:, None],
            cache=latents_of(latent, memory),
            rope=none,
            latent_scale=none,
            latent_global=none,
            block_table=inputs["block_table"],
            lengths=inputs["lengths"],
        )
        values = self.run(layer, "kv_b_values", x=o[:, 0], w=inputs[f"{layer}.kv_b_values"])
        return self.product(layer, "o", values.view(B, -1))

    def ffn(self, layer: int, x: torch.Tensor) -> list[torch.Tensor]:
        """What the FFN adds to the residual, or what routed experts add, then what shared experts do, then the logits
        that weigh these."""
        if routed(self.case, layer):
            routed_part, share = self.experts(layer, x)
            found = [routed_part]
            if shape_of(self.case.model).shared_width:
                found.append(self.dense(layer, "shared", x))
            found += [share] if wiring_of(self.case.model).shared_gate else []
        else:
            found = [self.dense(layer, "ffn", x)]
        if wiring_of(self.case.model).post_norms:
            return [self.norm(layer, "ffn_post_norm", found, None)[0]]
        return found

    def experts(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What routed experts give, and the last column of the router's product."""
        import torch

        inputs, E = self.inputs, shape_of(self.case.model).experts
        logits = self.product(layer, "router", x)
        found = self.run(layer, "route", logits=logits[:, :E], bias=inputs[f"{layer}.router_bias"])
        matrices = {f"w_{n}": inputs[f"{layer}.experts_{n}"] for n in ("gate_up", "down")}
        for name in (f"{matrix}_{part}" for matrix in ("gate_up", "down") for part in BESIDE):
            if f"{layer}.experts_{name}" in inputs:
                matrices[f"w_{name}"] = inputs[f"{layer}.experts_{name}"]
        if wiring_of(self.case.model).expert_bias:
            matrices |= {f"b_{n}": inputs[f"{layer}.experts_{n}_bias"] for n in ("gate_up", "down")}
        weights, latent = found[1].view(torch.float32), shape_of(self.case.model).expert_hidden
        x = self.product(layer, "latent_in", x) if latent else x
        y = self.run(layer, "experts", x=x, topk_ids=found[0], topk_weights=weights, **matrices)
        return self.product(layer, "latent_out", y) if latent else y, logits[:, -1]

    def dense(self, layer: int, name: str, x: torch.Tensor) -> torch.Tensor:
        prefix = prefix_of(name)
        if not in_one(self.case):
            gate_up = self.product(layer, f"{prefix}gate_up", x)
            return self.product(layer, f"{prefix}down", self.run(layer, f"{prefix}activation", x=gate_up))
        matrices = {f"w_{each}": self.inputs[f"{layer}.{prefix}{each}"] for each in ("gate", "up", "down")}
        return self.run(layer, name, x=x, **matrices)

    def logits(self) -> torch.Tensor:
        """The whole step; also writes the next tokens into `next`."""
        case, inputs = self.case, self.inputs
        factor = embedding_factor(case)
        new, x = [self.kernels.look_up(inputs["tokens"], inputs["embedding"], factor)], None
        for layer in range(case.measured_layers):
            if mixes(case, layer):
                y, x = self.norm(layer, "attention_norm", new, x)
                new = self.mixer(layer, y)
            if feeds(case, layer):
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
