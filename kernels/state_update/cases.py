"""Shapes of state updates: kinds of layers, the fields of a token, and the suites. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from kernels.common.fields import Count, Dtype, OneOf
from kernels.common.integers import cdiv
from kernels.common.random_inputs import BYTES
from kernels.op import Case

Kind = Literal["mamba1", "mamba2", "gated_delta", "kda"]

DELTA = ("gated_delta", "kda")
"""The kinds whose update is the delta rule."""

APART = ("mamba1", "kda")
"""The kinds whose token is no one product's: that of Mamba follows a convolution, and decays of KDA have a low rank."""


@dataclass(frozen=True, kw_only=True)
class StateCase(Case):
    """One layer with `H` heads, whose states are `V` x `K`; `G` groups of heads share their vectors of K elements.

    - `mamba2`: V is the head's size, K the state's size, G the number of groups of B and C
    - `gated_delta`, `kda`: V and K are the sizes of values and keys, G is the number of heads of q and k
    - `mamba1`: V is the number of channels; H = G = 1, and the convolution is another kernel
    - `conv`: taps of the causal convolution; 0: the inputs are convolved already
    - `q_len`: tokens of each sequence. The state after each of them is written, so that a draft can be taken back
    - `every`: the state is written in every such step only; the tokens since then stand in a ring and are replayed.
      Sequence i of the active ones is in step i % every of its turn, in random order
    - `idle`: entries of the batch that have no sequence
    - `state`: the type of states and of y; `dtype` is that of tokens, ring and convolution
    - `apart`: the token comes from several products, in tensors of its own that `apart.py` names, and y has `dtype`
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"q_len": 1, "every": 1, "idle": 0}

    kind: Kind
    B: int
    V: int
    K: int
    H: int = 1
    G: int = 1
    q_len: int = 1
    conv: Count = 4
    every: int = 1
    idle: Count = 0
    state: Annotated[str, OneOf("fp32", "bf16", "fp16")] = "fp32"
    dtype: Dtype = "bf16"
    apart: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state not in ("fp32", self.dtype):
            raise ValueError(f"state {self.state}: expected fp32 or {self.dtype}, as dtype has it")
        if self.idle >= self.B:
            raise ValueError(f"idle {self.idle}: fewer than the batch, B = {self.B}")
        if self.H % self.G:
            raise ValueError(f"H = {self.H}: expected a multiple of G = {self.G}")
        if self.kind == "kda" and self.H != self.G:
            raise ValueError(f"H = {self.H}: kda has as many heads of q and k, G = {self.G}")
        if self.K % 8:
            raise ValueError(f"K = {self.K}: expected a multiple of 8")
        if self.every > 1 and self.q_len > 1:
            raise ValueError(f"every {self.every}: steps that leave the state have one token, not q_len = {self.q_len}")
        if self.apart and (self.kind not in APART or (self.q_len, self.every) != (1, 1)):
            raise ValueError(f"apart needs kind {' or '.join(APART)}, with q_len = 1 and every = 1")
        if self.kind == "mamba1" and (self.H, self.conv, self.every) != (1, 0, 1):
            raise ValueError("mamba1 needs H = 1, conv = 0 and every = 1: a projection follows its convolution")

    @property
    def id(self) -> str:
        parts = [self.kind, f"B{self.B}", f"H{self.H}", f"G{self.G}", f"V{self.V}", f"K{self.K}"]
        parts += [f"q{self.q_len}"] if self.q_len > 1 else []
        parts += [f"conv{self.conv}"] if self.conv else []
        parts += [f"every{self.every}"] if self.every > 1 else []
        parts += [f"idle{self.idle}"] if self.idle else []
        parts += ["apart"] if self.apart else []
        return "-".join([*parts, self.state, self.dtype])

    @property
    def active(self) -> int:
        return self.B - self.idle

    @property
    def slot(self) -> int:
        """Elements of one sequence's state."""
        return self.H * self.V * self.K

    @property
    def written(self) -> int:
        """State slots that one sequence writes at most in a launch."""
        return self.q_len

    @property
    def slots(self) -> int:
        """Slots of the pool: those read, those written, and a sixteenth of them more."""
        used = self.B * (1 + self.written)
        return used + max(1, used // 16)

    @property
    def rings(self) -> int:
        return self.B + max(1, self.B // 16)

    @property
    def phases(self) -> list[int]:
        """Tokens that stand aside, for the active sequences before they are put in random order."""
        return [i % self.every for i in range(self.active)]

    @property
    def states_written(self) -> int:
        """State slots that a launch writes."""
        if self.every == 1:
            return self.active * self.q_len
        return sum(phase == self.every - 1 for phase in self.phases)

    @property
    def channels(self) -> dict[str, int]:
        """What the convolution goes over, in the order in which a token holds it."""
        values, keys = self.H * self.V, self.G * self.K
        if self.kind in DELTA:
            return {"q": keys, "k": keys, "v": values}
        return {"x": values, "b": keys, "c": keys}

    @property
    def gates(self) -> dict[str, int]:
        """The rest of a token."""
        if self.kind == "mamba1":
            return {"z": self.V, "dt": self.V}
        if self.kind == "mamba2":
            return {"dt": self.H}
        return {"a": self.H * (self.K if self.kind == "kda" else 1), "beta": self.H}

    @property
    def width(self) -> int:
        """Elements of a token."""
        return self.convolved + sum(self.gates.values())

    @property
    def convolved(self) -> int:
        """Elements of a token that the convolution goes over."""
        return sum(self.channels.values())

    @property
    def ring(self) -> int:
        """Tokens of a ring: those that the convolution and a replay look back to, and the new ones. 0: no ring."""
        if not self.conv and self.every == 1:
            return 0
        return max(self.conv - 1, 0) + self.every - 1 + self.q_len

    @property
    def ring_width(self) -> int:
        """Elements of a token in a ring: a replay needs its gates too."""
        return self.width if self.every > 1 else self.convolved

    @property
    def regions(self) -> tuple[int, int, int]:
        """Rows of K elements of `state` that states, rings and y take."""
        ring_bytes = self.rings * self.ring * self.ring_width * BYTES[self.dtype]
        y_bytes, row = self.B * self.q_len * self.H * self.V * BYTES[self.y_type], self.K * BYTES[self.state]
        return self.slots * self.H * self.V, cdiv(ring_bytes, row), cdiv(y_bytes, row)

    @property
    def y_type(self) -> str:
        return self.dtype if self.apart else self.state


QWEN = StateCase(kind="gated_delta", B=1, H=32, G=16, V=128, K=128, model="qwen3-next-80b-a3b")
"""huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct, config.json: linear_num_value_heads, linear_num_key_heads,
linear_value_head_dim, linear_key_head_dim, linear_conv_kernel_dim. Qwen3.5-35B-A3B has the same; its
mamba_ssm_dtype is float32."""

NEMOTRON = StateCase(kind="mamba2", B=1, H=64, G=8, V=64, K=128, model="nemotron-3-nano-30b-a3b")
"""huggingface.co/nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16, config.json: mamba_num_heads, n_groups, mamba_head_dim,
ssm_state_size, conv_kernel; mamba_ssm_cache_dtype is float32."""

NEMOTRON_H = StateCase(kind="mamba2", B=1, H=256, G=8, V=64, K=256, model="nemotron-h-56b")
"""huggingface.co/nvidia/Nemotron-H-56B-Base-8K, config.json."""

KIMI = StateCase(kind="kda", B=1, H=32, G=32, V=128, K=128, model="kimi-linear-48b-a3b")
"""huggingface.co/moonshotai/Kimi-Linear-48B-A3B-Instruct, config.json, linear_attn_config: num_heads, head_dim,
short_conv_kernel_size."""

JAMBA = StateCase(kind="mamba1", B=1, V=8192, K=16, conv=0, model="jamba-v0.1")
"""huggingface.co/ai21labs/Jamba-v0.1, config.json: hidden_size 4096 x mamba_expand 2, mamba_d_state."""

TINY = StateCase(kind="gated_delta", B=3, H=2, G=1, V=64, K=32, idle=1)


def cases(suite: str) -> list[StateCase]:
    if suite == "smoke":
        return [replace(NEMOTRON, B=4, dtype="fp32"), replace(QWEN, B=4, conv=0, dtype="fp32")]
    if suite == "quick":
        return [
            replace(QWEN, B=1),
            replace(QWEN, B=64),
            replace(NEMOTRON, B=64),
            replace(NEMOTRON, B=64, every=8),
            replace(KIMI, B=64),
        ]
    if suite == "full":
        return [
            *(replace(each, B=B) for each in (QWEN, NEMOTRON) for B in (1, 8, 64, 256, 512)),
            *(replace(QWEN, B=B, conv=0) for B in (1, 64, 256)),
            *(replace(NEMOTRON, B=B, conv=0) for B in (64, 256)),
            replace(QWEN, B=256, conv=0, state="bf16"),
            *(replace(each, B=256, state="bf16") for each in (QWEN, NEMOTRON, KIMI)),
            *(replace(KIMI, B=B) for B in (1, 64, 256)),
            *(replace(JAMBA, B=B) for B in (1, 64, 256)),
            *(replace(NEMOTRON_H, B=B) for B in (1, 32)),
            *(replace(each, B=64, q_len=4) for each in (QWEN, NEMOTRON)),
            *(replace(NEMOTRON, B=B, every=8) for B in (1, 64, 256)),
            *(replace(each, B=64, every=4) for each in (QWEN, NEMOTRON)),
            replace(QWEN, B=64, idle=32),
        ]
    small = replace(TINY, V=16, idle=0)
    return [
        TINY,
        replace(small, conv=0, state="bf16"),
        replace(small, B=2, q_len=3, conv=3, state="bf16"),
        replace(small, every=2, dtype="fp32"),
        replace(small, kind="mamba2", H=4, G=2, V=8, K=16, idle=1),
        replace(small, kind="mamba2", q_len=2, conv=0, dtype="fp32"),
        replace(small, kind="mamba2", V=8, every=3, state="bf16"),
        replace(small, kind="kda", G=2, idle=1),
        replace(small, kind="kda", G=2, q_len=2, conv=0, state="bf16"),
        replace(small, kind="kda", H=1, B=2, every=2),
        replace(small, kind="mamba1", H=1, V=192, K=16, conv=0, idle=1),
        replace(small, kind="mamba1", H=1, V=24, K=16, conv=0, q_len=2, state="bf16"),
        replace(small, kind="mamba1", H=1, V=192, K=16, conv=0, idle=1, apart=True),
        replace(small, kind="kda", G=2, apart=True, dtype="fp16"),
    ]
