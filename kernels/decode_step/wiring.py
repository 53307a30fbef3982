"""How the layers of each family are wired, beside their sizes; and toy models for tests. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kernels.decode_step import mamba_wiring
from kernels.decode_step.angles import Rope, yarn_magnitude
from kernels.decode_step.mamba_wiring import TOY_MAMBA2, Selective
from kernels.decode_step.toys import TOYS
from kernels.models import MODELS, ModelShape
from kernels.rmsnorm.op import EPSILON
from kernels.state_update.cases import QWEN, StateCase


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What a layer of a family does that no size tells.

    `full_every`: every so many layers one has no window; 0: all layers have the window of the shape, if it has one.
    `windows` says it layer by layer instead. `window_rope` turns the heads of layers with a window, None for the same
    angles as in the others. `router` holds fields of `kernels/router`.
    """

    rope: Rope = field(default_factory=Rope)
    window_rope: Rope | None = None
    full_every: int = 0
    windows: tuple[bool, ...] = ()
    epsilon: float = EPSILON
    latent_epsilon: float = EPSILON
    """That of the norms of latents (MLA)."""
    qkv_bias: bool = False
    o_bias: bool = False
    expert_bias: bool = False
    """Biases of the router and of the experts' products."""
    sink_logits: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    """Norms also behind attention and behind the FFN, before the residual is added."""
    activation: str = "swiglu"
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of the hidden size."""
    attention_scale: float = 0.0
    """0 for the inverse root of the size of a head."""
    score_factor: float = 1.0
    """Multiplies that inverse root."""
    norms_less_one: bool = False
    """How files store norms."""
    pairs_adjacent: bool = False
    """Whether files keep the two dims of a rotated pair next to each other, not half a head apart."""
    router: tuple[tuple[str, Any], ...] = ()
    rotary_share: float = 1.0
    """The part of a head that is rotated."""
    shared_gate: bool = False
    """Whether a logit of each token weighs what shared experts give. Its row stands behind those of the router."""
    states: tuple[bool, ...] = ()
    """Which layers have a state mixer, over and over from the first layer on; of most models instead of attention."""
    state: StateCase | None = None
    """The sizes of a state mixer."""
    state_norm: bool = True
    """Whether a norm stands behind a state; else its gate alone does."""
    norm_first: bool = False
    """Whether that norm comes before its gate, though the state is Mamba-2's."""
    blocks: str = ""
    """What each layer is where it is one block: `M` a state mixer, `*` attention, `-` an FFN, `E` experts. Empty where
    each has a mixer and then an FFN."""
    factors: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """What rows of matrices are multiplied by when they are loaded: one factor for a whole matrix, or one for each kind
    of its rows."""
    selective: Selective | None = None
    """Of Mamba-1."""
    sparse: tuple[bool, ...] = ()
    """Which layers have experts, over and over from the first layer on; empty: all behind the dense ones."""
    embedding_factor: float = 1.0
    residual_factor: float = 1.0
    """Of what each block adds; the weights of its last product are multiplied by it when they are loaded."""
    logits_factor: float = 1.0
    """Likewise, in the weights of the last norm."""


QWEN_NEXT = Wiring(
    rope=Rope(theta=1e7),
    rotary_share=0.25,
    epsilon=1e-6,
    qk_norm=True,
    norms_less_one=True,
    shared_gate=True,
    states=(True, True, True, False),
    state=QWEN,
)

NANO = StateCase(kind="mamba2", B=1, H=64, G=8, V=64, K=128)


def nemotron(blocks: str, state: StateCase, **more: Any) -> Wiring:
    """`hybrid_override_pattern` of its config.json: every layer is one block, and no head turns."""
    return Wiring(
        rope=Rope(kind="none"),
        activation="relu2",
        blocks=blocks,
        states=tuple(block == "M" for block in blocks),
        state=state,
        router=(("score", "sigmoid"), ("scaling", 2.5)),
        **more,
    )


FAMILIES: Mapping[str, Wiring] = {
    # config.json of each: rope_theta and rms_norm_eps, and the family's model code in transformers
    "llama-2": Wiring(),
    "llama-3": Wiring(rope=Rope(theta=500000.0)),
    "qwen2.5": Wiring(rope=Rope(theta=1e6), qkv_bias=True, epsilon=1e-6),
    "qwen3.5": QWEN_NEXT,
    "qwen3-next": QWEN_NEXT,
    "qwen3": Wiring(rope=Rope(theta=1e6), qk_norm=True, epsilon=1e-6),
    "mistral": Wiring(),
    "mixtral": Wiring(rope=Rope(theta=1e6)),
    "gemma-3": Wiring(
        rope=Rope(theta=1e6),
        window_rope=Rope(),
        full_every=6,
        epsilon=1e-6,
        qk_norm=True,
        post_norms=True,
        activation="geglu",
        scaled_embedding=True,
        norms_less_one=True,
        attention_scale=168**-0.5,  # query_pre_attn_scalar of the 27B
    ),
    "gpt-oss": Wiring(
        rope=Rope(
            theta=150000.0, kind="yarn", factor=32.0, original=4096, truncate=False, magnitude=yarn_magnitude(32.0)
        ),
        full_every=2,
        qkv_bias=True,
        o_bias=True,
        expert_bias=True,
        sink_logits=True,
        activation="swiglu_clamped",
        router=(("bias", True),),
    ),
    "deepseek-v3": Wiring(
        rope=Rope(kind="yarn", factor=40.0, original=4096),
        epsilon=1e-6,
        latent_epsilon=1e-6,
        pairs_adjacent=True,
        score_factor=yarn_magnitude(40.0) ** 2,
        router=(("score", "sigmoid"), ("groups", 8), ("top_groups", 4), ("scaling", 2.5)),
    ),
    "bamba": Wiring(rotary_share=0.5, states=(True, False), state=TOY_MAMBA2),
    # 4 of 40 layers attend; which ones they are, and what is multiplied by a constant, changes nothing that is timed
    "granite-4.0-h": Wiring(
        rope=Rope(kind="none"),
        states=(*(True,) * 5, False, *(True,) * 4),
        state=StateCase(kind="mamba2", B=1, H=128, G=1, V=64, K=128),
    ),
    "nemotron-3-nano": nemotron("MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME", NANO),
    "nemotron-h": nemotron(
        "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-"
        "M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
        StateCase(kind="mamba2", B=1, H=256, G=8, V=64, K=256),
    ),
    "falcon-h1": Wiring(
        rope=Rope(theta=1e11),
        states=(True,),
        state=StateCase(kind="mamba2", B=1, H=24, G=1, V=64, K=128),
        state_norm=False,
    ),
    **{name: Wiring(**said) for name, said in mamba_wiring.FAMILIES.items()},
}
"""By the beginning of a model's name; the first that fits counts."""


TOY_DELTA: Mapping[str, Any] = {
    "states": (True, False),
    "state": StateCase(kind="gated_delta", B=1, H=4, G=2, V=16, K=32),
}

TOY_FALCON: dict[str, Any] = {
    "state": TOY_MAMBA2,
    "embedding_factor": 3.0,
    "logits_factor": 0.25,
    "factors": (
        ("qkv", (1.25, 0.75, 1.25)),
        ("o", (0.75,)),
        ("state_in", (0.625, 0.75, 0.5, 1.25, 0.875)),
        ("state_out", (0.5,)),
        ("gate", (1.5,)),
        ("down", (0.5,)),
    ),
}
"""Rows of q, k and v; of x, B, C, dt and z."""

TOY_WIRING: Mapping[str, Mapping[str, Any]] = {
    "toy-gemma-3": {"full_every": 2, "attention_scale": 0.0},
    **dict.fromkeys(("toy-qwen3-next", "toy-qwen3.5", "toy-qwen3.5-moe"), TOY_DELTA),
    "toy-granite-4.0-h": {
        "states": (True, False),
        "state": TOY_MAMBA2,
        "attention_scale": 0.1,
        "embedding_factor": 3.0,
        "residual_factor": 0.5,
        "logits_factor": 0.25,
    },
    "toy-nemotron-h": vars(nemotron("ME*-E", TOY_MAMBA2)),
    "toy-falcon-h1": TOY_FALCON,
    "toy-falcon-h1-34b": {**TOY_FALCON, "state_norm": True, "norm_first": True},
    **mamba_wiring.TOY_WIRING,
}
"""What toys have otherwise than their family."""


REMEMBERED: dict[str, tuple[ModelShape, Wiring]] = {}
"""Models that are in no table here, by their names in lower case."""


def remember(shape: ModelShape, wiring: Wiring) -> None:
    """From now on, this process knows a model by the name of its shape."""
    REMEMBERED[shape.name.lower()] = shape, wiring


def shape_of(model: str) -> ModelShape:
    """Raises ValueError for a model whose step is not composed here."""
    name = model.lower()
    if name in REMEMBERED:
        return REMEMBERED[name][0]
    shape = MODELS.get(name) or TOYS.get(name)
    if shape is None:
        raise ValueError(f"model {model!r}: expected one of {', '.join(composed())}")
    if family(name) is None:
        raise ValueError(f"model {model}: no step is composed for its family; there is for {', '.join(composed())}")
    return shape


def family(name: str) -> Wiring | None:
    plain = name.removeprefix("toy-")
    return next((wiring for begin, wiring in FAMILIES.items() if plain.startswith(begin)), None)


def wiring_of(model: str) -> Wiring:
    name = model.lower()
    if name in REMEMBERED:
        return REMEMBERED[name][1]
    found = family(name)
    assert found, name
    return replace(found, **TOY_WIRING.get(name, {}))


def has_experts(shape: ModelShape, wiring: Wiring, layer: int) -> bool:
    if wiring.sparse:
        return shape.is_moe and wiring.sparse[layer % len(wiring.sparse)]
    return shape.is_moe and layer >= shape.dense_layers


def composed() -> list[str]:
    """The models of the table whose step is composed."""
    return [name for name in MODELS if family(name)]
