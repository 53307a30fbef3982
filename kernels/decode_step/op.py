"""One decode step of a whole model: each of B sequences gets one token, and the logits [B, V] of the next.

x = embedding[token]; in each layer x += mixer(norm(x)), x += FFN(norm(x)); logits = norm(x) W^T; next = argmax.
A mixer is attention or, in some layers of hybrids, one with a state (`states.py`). Each layer has its own weights and
its own cache or state. `parts.py` lists the operations, `wiring.py` what families do.

The step is the same each time that it is launched: a token is written into the slot where it was written before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common import paging
from kernels.common.compare import UNIT_ROUNDOFF
from kernels.common.fields import TYPES, Count, Dtype, OneOf, cache_type
from kernels.common.quantization import Weights, check_weights
from kernels.common.random_inputs import BYTES, LARGEST
from kernels.decode_step.blocks import has_attention
from kernels.decode_step.inputs import inputs
from kernels.decode_step.parts import attention_case, parts, windowed
from kernels.decode_step.reference import reference
from kernels.decode_step.wiring import remember, shape_of
from kernels.op import Case, Inputs, Launch, Op, Target, Tolerance, Work

if TYPE_CHECKING:
    import torch

    from kernels.model_config import Reading


@dataclass(frozen=True, kw_only=True)
class StepCase(Case):
    """`model` names the shape; `layers` is how many of its layers are measured, 0 for all. `T` tokens are cached in the
    longest sequence, those of this step included; the others are drawn as `kernels/attention_decode` draws them.

    `weights` is the type of all products but the LM head and the router, `experts` that of routed experts where it is
    another one, `kv` that of the cache: `fp8` or `int8` with scales, or `dtype`, which becomes `""`.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"lengths": "uniform"}

    B: int
    T: int
    layers: Count = 0
    page: Count = 16
    lengths: paging.Lengths = "uniform"
    seed: Count = 0
    grown: Count = 0
    dtype: Dtype = "bf16"
    weights: Weights = ""
    experts: Weights = ""
    kv: Annotated[str, OneOf("", *LARGEST, *TYPES)] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        shape = shape_of(self.model)
        object.__setattr__(self, "weights", self.weights or self.dtype)
        check_weights(self.weights, self.dtype, hidden=shape.hidden)
        if self.experts:
            check_weights(self.experts, self.dtype, hidden=shape.hidden)
            object.__setattr__(self, "experts", "" if self.experts == self.weights else self.experts)
        if self.experts and not shape.is_moe:
            raise ValueError(f"experts {self.experts}: {self.model} has no routed experts")
        object.__setattr__(self, "kv", cache_type(self.kv, self.dtype))
        if self.kv and shape.is_mla:
            raise ValueError(f"kv {self.kv}: the latents of {self.model} are cached in {self.dtype} in a step")
        if self.layers > shape.layers:
            raise ValueError(f"layers {self.layers}: {self.model} has {shape.layers}")
        if shape.max_context < self.T:
            raise ValueError(f"T = {self.T}: {self.model} is made for {shape.max_context}")
        if self.lengths == "holes":
            raise ValueError("lengths holes: each sequence of a step has its new token at least")
        assert not has_attention(self) or attention_case(self, 0)

    @staticmethod
    def learn(reading: Reading) -> None:
        """From now on, this process knows the model of a config.json by the name of its shape. Raises `BadConfig`."""
        from kernels.decode_step.families import wiring_from

        remember(reading.shape, wiring_from(reading))

    def published(
        self,
        stored: Mapping[str, torch.Tensor],
        quantization: Mapping[str, Any] | None = None,
        dequantize: bool = False,
    ) -> Inputs:
        """The weights of a checkpoint as this step takes them, see `published.weights`. Raises KeyError for a tensor
        that is missing, and ValueError for one of another size or type than the step takes."""
        from kernels.decode_step.published import weights

        return weights(self, stored, quantization, dequantize)

    @staticmethod
    def stored_formats(stored: Mapping[str, torch.Tensor], quantization: Mapping[str, Any]) -> tuple[str, str]:
        """`weights` and `experts` of a quantized checkpoint, see `packed.formats`. Raises ValueError."""
        from kernels.decode_step.packed import formats

        return formats(stored, quantization)

    def following(self, weights: Inputs, token: int, before: tuple[StepCase, Inputs] | None, device: str) -> Inputs:
        """See `decoding.py`."""
        from kernels.decode_step.decoding import following

        return following(self, weights, token, before, device)

    def share_of(self, ranks: int) -> StepCase:
        """The step of one rank where the model is split, see `split.py`. Raises ValueError."""
        from kernels.decode_step.split import share_of

        return share_of(self, ranks)

    def of_rank(self, inputs: Inputs, rank: int, ranks: int, target: Target, reduce: Any) -> tuple[Inputs, Launch]:
        """What a rank reads of the inputs of this step, and its launch."""
        from kernels.decode_step.split import prepare, share

        mine = share(self, inputs, rank, ranks)
        return mine, prepare(self.share_of(ranks), mine, target, reduce)

    @property
    def vocab(self) -> int:
        return shape_of(self.model).vocab

    @property
    def measured_layers(self) -> int:
        return self.layers or shape_of(self.model).layers

    @property
    def windowed_layers(self) -> int:
        """How many of the measured layers have the window of the model."""
        return sum(windowed(self, layer) for layer in range(self.measured_layers))

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype]

    @property
    def quantized(self) -> bool:
        return self.weights != self.dtype

    @property
    def experts_in(self) -> str:
        """The stored type of routed experts."""
        return self.experts or self.weights

    @property
    def id(self) -> str:
        found = [self.model, *([f"L{self.layers}"] if self.layers else []), f"B{self.B}-T{self.T}"]
        if self.lengths != "uniform":
            found.append(self.lengths + (str(self.seed) if self.seed else ""))
        found += [f"grown{self.grown}"] if self.grown else []
        found += [f"page{self.page}" if self.page else "contiguous", self.dtype]
        found += [f"w{self.weights}"] if self.quantized else []
        found += [f"e{self.experts}"] if self.experts else []
        return "-".join([*found, *([f"kv{self.kv}"] if self.kv else [])])


def cases(suite: str) -> list[StepCase]:
    """A quick run has some layers of a model; a full one also all of them, where two copies fit into 80 GB. The smoke
    suite has four layers and the LM head of a small model, 0.4 GB: a host reads them in some hundredths of a second."""
    if suite == "smoke":
        return [StepCase(model="qwen2.5-0.5b", layers=4, B=1, T=1024)]
    if suite == "quick":
        return [StepCase(model="llama-3.1-8b", layers=4, B=1, T=4096)]
    if suite == "full":
        return [
            *(StepCase(model="llama-3.1-8b", B=B, T=4096) for B in (1, 16)),
            StepCase(model="gpt-oss-20b", layers=2, B=1, T=4096, kv="fp8"),
            StepCase(model="llama-3.2-1b", B=1, T=4096),
            StepCase(model="qwen3-32b", layers=8, B=1, T=4096),
            StepCase(model="gemma-3-27b", layers=6, B=1, T=4096),
        ]
    return [
        StepCase(model="toy-gemma-3", B=3, T=20, page=4, lengths="ragged", dtype="fp16"),
        StepCase(model="toy-qwen2.5", layers=1, B=2, T=9, page=0, dtype="fp16"),
    ]


def sweeps() -> list[StepCase]:
    """Steps that differ in one field, as the claims about whole steps compare them; two copies of each, and its cache,
    fit into 80 GB. All layers of an 8B over batches, contexts and types, and some of a 70B over batches."""

    def llama(**fields: Any) -> StepCase:
        return StepCase(model="llama-3.1-8b", **fields)

    return [
        *(llama(B=B, T=1024) for B in (1, 4, 5, 16, 64, 128)),  # five rows verify four drafts
        *(llama(B=1, T=T) for T in (4096, 32768, 131072)),
        *(llama(B=1, T=1024, weights=weights) for weights in ("fp8", "int8", "int4")),
        *(llama(layers=8, B=64, T=8192, kv=kv) for kv in ("", "fp8")),
        *(StepCase(model="llama-3.1-70b", layers=8, B=B, T=2048) for B in (1, 4, 16, 64, 256)),
    ]


def work(case: StepCase) -> Work:
    """The work of all parts. What passes from one to the next is counted too, as `decodebench predict` does."""
    return sum((part.work for part in parts(case)), Work())


def tolerance(case: StepCase) -> Tolerance:
    """In fp32 the order of sums differs; else some roundings a layer, each of which the next layers pass on."""
    if case.dtype == "fp32":
        return Tolerance(max_rel=1e-3, rms_rel=1e-4, why="fp32 sums in another order, in every operation of the step")
    unit = UNIT_ROUNDOFF[case.dtype] * math.sqrt(2 + 4 * case.measured_layers)
    why = "each operation rounds its output once; errors of layers add up like independent ones"
    return Tolerance(max_rel=8 * unit, rms_rel=1.5 * unit, why=why)


OP = Op(
    name="decode_step",
    title="decode step",
    role="contrast",
    about="a whole decode step of a model: all operations of all layers, one after the other",
    formula="x += attention(norm(x)); x += FFN(norm(x)) in each layer; logits = norm(x) W^T",
    case_type=StepCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("tokens",),
    sweeps=sweeps,
)
