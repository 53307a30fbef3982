"""What planted faults leave of a product, from what a right kernel computes.

A fault is a local or a linear change, so nothing is multiplied a second time: without its last column a product lacks
one outer product, and with a wrong scale one row or one group of columns counts more or less. All results are in fp32,
before the last rounding. `tests/measure/test_lost_weights.py` compares them with kernels that have these faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.common import gated
from kernels.common.integers import cdiv
from kernels.common.quantization import FORMATS, MX_FORMATS, dequantize
from kernels.common.random_inputs import torch_dtype
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv.op import GemvCase
from kernels.moe_ffn.op import MoeCase, height, packed_as
from kernels.op import Inputs

Outputs = dict[str, torch.Tensor]


def scale_values(format: str, scale: torch.Tensor) -> torch.Tensor:
    """What stored scales stand for."""
    return torch.exp2(scale.float() - 127) if format in MX_FORMATS else scale.float()


def to_bf16(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().float()


def of_all_elements(y: torch.Tensor, error: float, offset: float) -> Outputs:
    """Too large or too small by the share `error`, or by the share `offset` of the rms."""
    return {"gain": y * (1 + error), "loss": y * (1 - error), "offset": y + offset * y.square().mean().sqrt()}


def wrong_scales(format: str, x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> Outputs:
    """By how much x W^T changes if the last row of W, or its last group of columns, takes the scales before it, or if
    the last row has none. W `[N, K]` in fp32 has `scale`."""
    kind, values = FORMATS[format], scale_values(format, scale)
    changes = {}
    last = (len(w) - 1) // kind.group_n * kind.group_n
    for name, instead in (("before", values[max(0, len(values) - 2)]), ("lost", torch.ones(()))):
        more = (instead / values[-1] - 1).view(-1).repeat_interleave(kind.group_k or w.shape[1])[: w.shape[1]]
        changes[f"scale of the row {name}"] = torch.zeros(len(x), len(w))
        changes[f"scale of the row {name}"][:, last:] = x * more @ w[last:].T
    if kind.group_k:
        more = (values[:, -2] / values[:, -1] - 1).repeat_interleave(kind.group_n)[: len(w)]
        last = (w.shape[1] - 1) // kind.group_k * kind.group_k
        changes["scale of the group before"] = x[:, last:] @ w[:, last:].T * more
    return changes


def rounded_scales(format: str, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W with fp32 scales that were rounded to bf16."""
    ratio = to_bf16(scale) / scale
    if scale.ndim == 1:
        return w * ratio[:, None]
    kind = FORMATS[format]
    rows = ratio.repeat_interleave(kind.group_n, dim=0)[: len(w)]
    return w * rows.repeat_interleave(kind.group_k, dim=1)[:, : w.shape[1]]


def gemv_outputs(case: GemvCase, inputs: Inputs, splits: int = 8) -> tuple[torch.Tensor, Outputs]:
    """y of a right kernel, and of kernels with a fault each. K is a multiple of `splits`."""
    x = inputs["x"].float()
    if case.activations != case.dtype:
        x = x * inputs["x_scale"][:, None]
    w = dequantize(case.weights, inputs, 0, case.N) if case.quantized else inputs["w"].float()
    parts = torch.stack([a @ b.T for a, b in zip(x.chunk(splits, 1), w.chunk(splits, 1), strict=True)])
    y = parts.sum(dim=0)
    found = of_all_elements(y, 0.005, 0.005) | {"last column lost": y - x[:, -1:] * w[:, -1]}
    if case.activations == case.dtype:
        found |= {f"{n} partial sums": to_bf16(parts.unflatten(0, (n, -1)).sum(dim=1)).sum(dim=0) for n in (2, splits)}
    else:
        found["x_scale in bf16"] = y * (to_bf16(inputs["x_scale"]) / inputs["x_scale"])[:, None]
    if case.weights in ("int8", "fp8"):
        found["w_scale in bf16"] = y * (to_bf16(inputs["w_scale"]) / inputs["w_scale"])
    if case.weights == "fp8_block":
        found["w_scale in bf16"] = x @ rounded_scales(case.weights, w, inputs["w_scale"]).T
    if case.quantized:
        found |= {n: y + change for n, change in wrong_scales(case.weights, x, w, inputs["w_scale"]).items()}
    return y, found


@dataclass(frozen=True, kw_only=True)
class Expert:
    """W_gate above W_up `[2 F, H]`, and the last rows of W_down `[N, F]`, in fp32, and their scales."""

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_scale: torch.Tensor | None = None
    down_scale: torch.Tensor | None = None


def ffn_weights(case: FfnCase, inputs: Inputs, rows: int) -> Expert:
    gate_up = torch.cat([inputs["w_gate"], inputs["w_up"]]).float()
    return Expert(gate_up=gate_up, down=inputs["w_down"][-rows:].float())


def expert(case: MoeCase, inputs: Inputs, e: int, rows: int) -> Expert:
    if not case.quantized:
        return Expert(gate_up=inputs["w_gate_up"][e].float(), down=inputs["w_down"][e, -rows:].float())
    kind = FORMATS[case.weights]

    def part(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The last rows of the expert's matrix, and their scales."""
        end, tall = (e + 1) * inputs[name].shape[1], height(case, name)
        last = end // tall * cdiv(tall, kind.group_n)
        first = last - count // min(count, tall) * cdiv(min(count, tall), kind.group_n)
        w = dequantize(case.weights, packed_as(case, inputs, name), end - count, end, tall)
        return w, inputs[f"{name}_scale"][first:last]

    gate_up, gate_up_scale = part("w_gate_up", case.matrices * case.F)
    down, down_scale = part("w_down", rows)
    return Expert(gate_up=gate_up, gate_up_scale=gate_up_scale, down=down, down_scale=down_scale)


def hidden(activation: str, gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Hidden values, rounded wherever the operation has a value."""
    gate, up = gated.halves(activation, gate_up.to(dtype).float())
    return gated.hidden(activation, gate, up).to(dtype).float()


def expert_outputs(
    activation: str,
    dtype: torch.dtype,
    x: torch.Tensor,
    w: Expert,
    format: str,
    *,
    columns: bool = True,
    scales: bool = False,
) -> Outputs:
    """What one expert makes of `x [tokens, H]`: exact, right, and with a fault each; with `columns` lost ones too, with
    `scales` single ones that are wrong."""
    gate_up = x @ w.gate_up.T
    h = hidden(activation, gate_up, dtype)
    exact = gated.hidden(activation, *gate_up.chunk(2, dim=1))
    y, y_exact = (torch.cat([h, exact]) @ w.down.T).chunk(2)
    found = {"exact": y_exact, "right": y}
    if columns:
        fewer = hidden(activation, gate_up - x[:, -1:] * w.gate_up[:, -1], dtype)
        found["last column of x"] = fewer @ w.down.T
        found["last hidden value"] = y - h[:, -1:] * w.down[:, -1]
    if format == "fp8_block":
        assert w.gate_up_scale is not None
        assert w.down_scale is not None
        halves = zip(w.gate_up.chunk(2), w.gate_up_scale.chunk(2), strict=True)
        wrong = hidden(activation, x @ torch.cat([rounded_scales(format, *half) for half in halves]).T, dtype)
        found["scales in bf16"] = wrong @ rounded_scales(format, w.down, w.down_scale).T
    if scales and w.gate_up_scale is not None and w.down_scale is not None:
        down = wrong_scales(format, h, w.down, w.down_scale)
        found |= {f"down, {name}": y + change for name, change in down.items()}
        F = h.shape[1]
        for part, first in (("gate", 0), ("up", F)):
            mine = slice(first, first + F)
            scale = w.gate_up_scale.chunk(2)[first > 0]
            for name, change in wrong_scales(format, x, w.gate_up[mine], scale).items():
                other = gate_up.clone()
                other[:, mine] += change
                found[f"{part}, {name}"] = hidden(activation, other, dtype) @ w.down.T
    return found


def experts_outputs(case: MoeCase, inputs: Inputs, rows: int, *, local: bool = True) -> Outputs:
    """The last `rows` of H columns of y. A wrong scale is that of the last expert that is hit. `local`: faults, too,
    that each token shows by itself."""
    x, ids, weights, dtype = inputs["x"].float(), inputs["topk_ids"], inputs["topk_weights"], torch_dtype(case.dtype)
    found: Outputs = {}
    hit = sorted(set(ids.flatten().tolist()))
    for e in hit:
        token, slot = (ids == e).nonzero(as_tuple=True)
        w = expert(case, inputs, e, rows)
        last = local and e == hit[-1]
        one = expert_outputs(case.activation, dtype, x[token], w, case.weights, columns=local, scales=last)
        one["last slot"] = one["right"] * (slot != case.width - 1)[:, None]
        if e == hit[-1]:
            one["last expert"] = 0 * one["right"]
            if "w_down_global" in inputs:
                whole = inputs["w_down_global"]
                one["down, scale of the expert before"] = one["right"] * (whole[e - 1] / whole[e])
        before = found["right"].clone() if found and e == hit[-1] else torch.zeros(case.rows, rows)
        for name, y in one.items():
            y = y if name == "exact" else y.to(dtype).float()
            if name not in found:
                found[name] = before.clone()
            found[name].index_add_(0, token, y * weights[token, slot, None])
    return found


def stored(case: GemvCase | FfnCase | MoeCase, y: torch.Tensor) -> torch.Tensor:
    return y.to(torch_dtype(case.dtype))
