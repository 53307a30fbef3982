"""The weights of published checkpoints, under the names that a step has for them.

Names on the left are those of Hugging Face's files. Experts lie there one by one, or all in one tensor. Quantized
matrices are read by `packed.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kernels.common.quantization import FORMATS, torch_scale_dtype
from kernels.common.random_inputs import torch_dtype
from kernels.decode_step import hybrids, low_rank
from kernels.decode_step.blocks import attends, feeds, mixes, stateful
from kernels.decode_step.inputs import height_of, matrices, vectors
from kernels.decode_step.packed import Packed, Quantized, by_heads, is_expert
from kernels.decode_step.parts import routed
from kernels.decode_step.states import state_case
from kernels.decode_step.wiring import Wiring, shape_of, wiring_of
from kernels.models import ModelShape
from kernels.state_update.cases import DELTA, StateCase

if TYPE_CHECKING:
    import torch

    from kernels.decode_step.op import StepCase

Stored = Mapping[str, "torch.Tensor"]

NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
POST_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}

LONE_NORM = {"attention_norm": "norm"}
"""Of a model without FFNs."""

FFN_NORMS = ("post_attention_layernorm", "pre_ff_layernorm")
FINAL_NORMS = ("norm", "final_layernorm", "norm_f")
EMBEDDINGS = ("embed_tokens.weight", "backbone.embeddings.weight")
ROUTERS = ("gate", "router", "router.layer")
DENSE = ("mlp", "feed_forward", "shared_mlp", "block_sparse_moe")
SHARED = ("shared_experts", "shared_expert")
"""Names that families have for one thing: Bamba, gpt-oss and Qwen3-Next have the second ones, Granite the third."""

FIRST = ("gate_proj.weight", "input_linear.weight")
"""How the first matrix of a FFN is named; the second one holds gate and up."""

LAST_PRODUCTS = ("o", "state_out", "down", "shared_down", "experts_down")
"""What gives the residual a block's output."""

UNGATED_EXPERTS = ("{}.up_proj", "{}.down_proj")
EXPERTS = (("{}.gate_proj", "{}.up_proj", "{}.down_proj"), ("{}.w1", "{}.w3", "{}.w2"))
"""Gate, up and down of an expert, as most files and as Mixtral's name them."""


def weights(
    case: StepCase, stored: Stored, quantization: Mapping[str, Any] | None = None, dequantize: bool = False
) -> dict[str, torch.Tensor]:
    """The weights of the measured layers in the type of the case, each of the size that the step wants.

    `quantization` is `quantization_config` of config.json. With `dequantize`, matrices that the step multiplies in
    16 bits are dequantized. A KeyError names a tensor that is missing; a ValueError one that the step doesn't take.
    """
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    stored = hybrids.Renamed(stored, wiring.blocks) if wiring.blocks else stored
    stored = Quantized(stored, quantization or {}, lambda name, packed: taken(case, name, packed, dequantize))
    embedding = next((name for name in stored if name.endswith(EMBEDDINGS)), "model.embed_tokens.weight")
    at, shift = embedding.removesuffix("weight").rpartition("embed")[0], float(wiring.norms_less_one)
    final = stored[f"{at}{one_of(stored, at, FINAL_NORMS)}.weight"] + shift
    found = {"embedding": stored[embedding], "final_norm": final * wiring.logits_factor}
    if not shape.tied_embeddings:
        found["lm_head"] = stored[next((n for n in stored if n.endswith("lm_head.weight")), "lm_head.weight")]
    for layer in range(case.measured_layers):
        mine = f"{at}layers.{layer}."
        for ours, theirs in norms_of(case).items():
            if not (feeds if ours.startswith("ffn") else mixes)(case, layer):
                continue
            theirs = one_of(stored, mine, FFN_NORMS) if ours == "ffn_norm" and not wiring.post_norms else theirs
            found[f"{layer}.{ours}"] = stored[f"{mine}{theirs}.weight"] + shift
        for name, tensor in blocks_of(case, stored, mine, layer):
            factor = wiring.residual_factor if name in LAST_PRODUCTS else 1.0
            found[f"{layer}.{name}"] = tensor * factor if factor != 1 else tensor
    made: dict[str, torch.Tensor] = {}
    for name, size, kind in (*matrices(case), *vectors(case)):
        tensor = found[name] if name in found else both(found, name)
        if tuple(tensor.shape) != tuple(size):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, config.json says {tuple(size)}")
        made |= as_stored(case, name, tensor, kind)
    return made


def both(found: Mapping[str, Any], name: str) -> Any:
    """Gate and up below each other: quantized, they are one product. Raises KeyError for any other name."""
    import torch

    if not name.endswith("gate_up"):
        raise KeyError(name)
    return torch.cat([found[name.removesuffix("_up")], found[name.removesuffix("gate_up") + "up"]])


def taken(case: StepCase, name: str, packed: Packed, dequantize: bool) -> Any:
    """A quantized matrix as the step's products take it. Raises ValueError where none does."""
    kind = case.experts_in if is_expert(name) else case.weights
    kind = case.dtype if by_heads(name) or ".layers." not in name else kind
    if (packed.format, kind) == ("int4", "int4_zp"):
        return packed.with_zero_points()
    if packed.format == kind:
        return packed
    if kind == case.dtype and dequantize:
        w = packed.dequantized().to(torch_dtype(case.dtype))
        return w.transpose(1, 2) if packed.name.endswith("_blocks") else w  # as gpt-oss stores experts in 16 bits
    how = "only in " if kind == case.dtype else "in "
    raise ValueError(
        f"{packed.name} is stored as {packed.format}, and a step multiplies it {how}{kind}; --dequantize makes "
        f"{case.dtype} of what has no product"
    )


def as_stored(case: StepCase, name: str, tensor: Any, kind: str) -> dict[str, torch.Tensor]:
    """A matrix with its scales and zero points, or a plain tensor in the type of the case."""
    import torch

    if isinstance(tensor, Packed):
        if tensor.format != kind:
            raise ValueError(f"{tensor.name} is stored as {tensor.format}, and a step multiplies it in {kind}")
        return tensor.inputs(name, torch_scale_dtype(kind, case.dtype), height_of(case, name))
    if kind in FORMATS:
        raise ValueError(
            f"{name} is stored in 16 bits, but others of its kind as {kind}; --dequantize makes {case.dtype} of them"
        )
    if tensor.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')} without a scale")
    return {name: typed(case, name, tensor)}


def norms_of(case: StepCase) -> Mapping[str, str]:
    """Names of the norms of a layer, ours and those of files."""
    if wiring_of(case.model).post_norms:
        return POST_NORMS
    return LONE_NORM if shape_of(case.model).plain_layers == shape_of(case.model).layers else NORMS


def blocks_of(case: StepCase, stored: Stored, at: str, layer: int) -> Pairs:
    """The weights of a layer but for its norms, with the factors of their rows taken into them."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    found: list[tuple[str, torch.Tensor]] = []
    if attends(case, layer):
        found += (latents if shape.is_mla else heads)(shape, wiring, stored, f"{at}self_attn.")
    if stateful(case, layer):
        found += states_of(state_case(case), wiring, stored, at)
    if feeds(case, layer):
        found += ffn(shape, wiring, stored, at, routed(case, layer))
    factors = dict(wiring.factors)
    for name, tensor in found:
        if name in factors:
            sizes = (shape.heads, shape.kv_heads, shape.head_dim)
            tensor = hybrids.scaled(tensor, factors[name], hybrids.kinds_of_rows(name, sizes, state_case(case)))
        yield name, tensor


def typed(case: StepCase, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """In the type of the case; what is added to scores stays in fp32, as do the rates of states."""
    sigmoid = name.endswith("router_bias") and dict(wiring_of(case.model).router).get("score") == "sigmoid"
    kind = "fp32" if sigmoid or name.endswith(("sink_logits", "A_log", "dt_bias", ".D")) else case.dtype
    return tensor.to(torch_dtype(kind)).contiguous()


Pairs = Iterator[tuple[str, "torch.Tensor"]]


def heads(shape: ModelShape, wiring: Wiring, stored: Stored, at: str) -> Pairs:
    """The mixer of a layer whose heads have keys and values of their own."""
    import torch

    none = torch.empty(0)
    q, k, v = (stored[f"{at}{x}_proj.weight"] for x in "qkv")
    if shape.gate_width:  # rows of each head of q, then those of its gate
        q, gate = (half.flatten(0, 1) for half in q.unflatten(0, (shape.heads, -1)).chunk(2, dim=1))
        yield "qkv", torch.cat([q, k, v, gate])
    else:
        yield "qkv", torch.cat([q, k, v])
    yield "bias", torch.cat([stored[f"{at}{x}_proj.bias"] for x in "qkv"]) if wiring.qkv_bias else none
    for x in "qk":
        norm = stored[f"{at}{x}_norm.weight"] + float(wiring.norms_less_one) if wiring.qk_norm else none
        yield f"{x}_norm", norm
    yield "sink_logits", stored[f"{at}sinks"] if wiring.sink_logits else none
    yield "o", stored[f"{at}o_proj.weight"]
    if wiring.o_bias:
        yield "o_bias", stored[f"{at}o_proj.bias"]


def latents(shape: ModelShape, wiring: Wiring, stored: Stored, at: str) -> Pairs:
    """The mixer of MLA. Files keep the two of a rotated pair next to each other; here they are R/2 apart."""
    import torch

    H, D, R, L = shape.heads, shape.head_dim, shape.rope_dim, shape.kv_latent
    order = torch.arange(R).view(-1, 2).T.flatten() if wiring.pairs_adjacent else torch.arange(R)

    def paired(w: torch.Tensor) -> torch.Tensor:
        """Rows [..., rows, K], of which the last R are rotated."""
        return torch.cat([w[..., :-R, :], w[..., -R:, :][..., order, :]], dim=-2)

    name = "q_b_proj" if shape.q_latent else "q_proj"
    queries = paired(stored[f"{at}{name}.weight"].unflatten(0, (H, D + R))).flatten(0, 1)
    first = stored[f"{at}q_a_proj.weight"] if shape.q_latent else queries
    yield "qkv", torch.cat([first, paired(stored[f"{at}kv_a_proj_with_mqa.weight"])])
    if shape.q_latent:
        yield "q_norm", stored[f"{at}q_a_layernorm.weight"]
        yield "q_b", queries
    yield "latent_norm", stored[f"{at}kv_a_layernorm.weight"]
    keys, values = stored[f"{at}kv_b_proj.weight"].view(H, -1, L).split([D, shape.value_dim], dim=1)
    yield "kv_b_keys", keys.transpose(1, 2)
    yield "kv_b_values", values
    yield "o", stored[f"{at}o_proj.weight"]


def states_of(state: StateCase, wiring: Wiring, stored: Stored, at: str) -> Pairs:
    """The mixer of a layer with a state. The rows of a token come first, those of the gate behind them."""
    import torch

    delta = state.kind in DELTA
    names = ("linear_attn", "self_attn") if delta else ("mamba", "mixer")
    at += next((f"{name}." for name in names if any(key.startswith(f"{at}{name}.") for key in stored)), names[0] + ".")
    if state.apart:
        yield from low_rank.published(state, wiring, stored, at)
        return
    if delta:
        yield "state_in", torch.cat(delta_rows(state, stored, at))
    else:
        w = stored[f"{at}in_proj.weight"]
        yield "state_in", torch.cat([w[state.H * state.V :], w[: state.H * state.V]])
        bias = stored.get(f"{at}conv1d.bias")
        yield "conv_bias", torch.zeros(state.convolved) if bias is None else bias
        yield "D", stored[f"{at}D"]
    yield "conv_weight", stored[f"{at}conv1d.weight"][:, 0].T
    yield from ((name, stored[at + name]) for name in ("A_log", "dt_bias"))
    if wiring.state_norm:
        yield "state_norm", stored[f"{at}norm.weight"]
    yield "state_out", stored[f"{at}out_proj.weight"]


def delta_rows(state: StateCase, stored: Stored, at: str) -> list[torch.Tensor]:
    """Rows of q, k and v, of a and beta, and of z. Qwen3.5 has four matrices, Qwen3-Next two with the rows of a group
    of heads together."""
    if f"{at}in_proj_qkv.weight" in stored:
        return [stored[f"{at}in_proj_{name}.weight"] for name in ("qkv", "a", "b", "z")]
    each, heads = state.H // state.G * state.V, state.H // state.G
    grouped = stored[f"{at}in_proj_qkvz.weight"].unflatten(0, (state.G, -1))
    *qkv, z = (rows.flatten(0, 1) for rows in grouped.split([state.K, state.K, each, each], dim=1))
    gates = stored[f"{at}in_proj_ba.weight"].unflatten(0, (state.G, -1)).split([heads, heads], dim=1)
    beta, a = (rows.flatten(0, 1) for rows in gates)
    return [*qkv, a, beta, z]


def one_of(stored: Stored, at: str, names: Sequence[str]) -> str:
    """The name that a file has; the first one if it has none."""
    return next((name for name in names if f"{at}{name}.weight" in stored), names[0])


def ffn(shape: ModelShape, wiring: Wiring, stored: Stored, at: str, has_experts: bool) -> Pairs:
    import torch

    if not has_experts:
        names = [name for name in DENSE if any(f"{at}{name}.{w}" in stored for w in FIRST)]
        yield from dense(shape, stored, f"{at}{names[0] if names else 'mlp'}.", "")
        return
    whole = at
    sparse = f"{at}block_sparse_moe."
    inside = (sparse, f"{at}feed_forward.", f"{at}mlp.")
    at = next((each for each in inside if any(f"{each}{name}.weight" in stored for name in ROUTERS)), inside[-1])
    gate = at + one_of(stored, at, ROUTERS)
    rows = stored[f"{gate}.weight"]
    yield "router", torch.cat([rows, stored[f"{at}shared_expert_gate.weight"]]) if wiring.shared_gate else rows
    corrected = f"{gate}.e_score_correction_bias"
    bias = stored[corrected] if corrected in stored else stored.get(f"{gate}.bias")
    yield "router_bias", torch.empty(0) if bias is None else bias
    if shape.expert_hidden:
        yield "latent_in", stored[f"{at}fc1_latent_proj.weight"]
        yield "latent_out", stored[f"{at}fc2_latent_proj.weight"]
    first, second = experts(shape, wiring, stored, f"{at}experts.")
    yield from (("experts_gate_up", first), ("experts_down", second))
    if wiring.expert_bias:
        yield "experts_gate_up_bias", apart(stored[f"{at}experts.gate_up_proj_bias"])
        yield "experts_down_bias", stored[f"{at}experts.down_proj_bias"]
    if shape.shared_width:
        beside = [f"{at}{name}." for name in SHARED if f"{at}{name}.up_proj.weight" in stored]
        yield from dense(shape, stored, beside[0] if beside else f"{whole}shared_mlp.", "shared_")


def dense(shape: ModelShape, stored: Stored, at: str, prefix: str) -> Pairs:
    if not shape.gated_ffn:
        yield f"{prefix}gate_up", stored[f"{at}up_proj.weight"]
        yield f"{prefix}down", stored[f"{at}down_proj.weight"]
        return
    if f"{at}{FIRST[1]}" in stored:
        yield from zip((f"{prefix}gate", f"{prefix}up"), stored[f"{at}{FIRST[1]}"].chunk(2), strict=True)
        yield f"{prefix}down", stored[f"{at}output_linear.weight"]
        return
    for name in ("gate", "up", "down"):
        yield prefix + name, stored[f"{at}{name}_proj.weight"]


def apart(rows: torch.Tensor) -> torch.Tensor:
    """Gate rows, then up rows, of rows [E, 2F, ...] in which they take turns."""
    import torch

    return torch.cat([rows[:, ::2], rows[:, 1::2]], dim=1)


def experts(shape: ModelShape, wiring: Wiring, stored: Stored, at: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[E, 2F, H] and [E, H, F]; [E, F, H] without a gate."""
    import torch

    whole = at.removesuffix("experts.")
    if f"{whole}input_linear.weight" in stored:
        return stored[f"{whole}input_linear.weight"], stored[f"{whole}output_linear.weight"]
    if f"{at}gate_up_proj" in stored:
        first, second = stored[f"{at}gate_up_proj"], stored[f"{at}down_proj"]
        if wiring.expert_bias:  # gpt-oss, whose experts are stored with the columns first, unless they are packed
            first, second = (w if isinstance(w, Packed) else w.transpose(1, 2) for w in (first, second))
            return apart(first), second
        return first, second
    if f"{at}up_proj" in stored:
        return stored[f"{at}up_proj"], stored[f"{at}down_proj"]

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([stored[f"{at}{name.format(e)}.weight"] for e in range(shape.experts)])

    if not shape.gated_ffn:
        up, down = (stacked(name) for name in UNGATED_EXPERTS)
        return up, down
    gate, up, down = (stacked(name) for name in EXPERTS[f"{at}0.w1.weight" in stored])
    return torch.cat([gate, up], dim=1), down
