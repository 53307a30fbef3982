"""The published recurrences in fp64: one sequence, one head, one token at a time."""

from __future__ import annotations

import math

import torch

from kernels.op import Inputs
from kernels.state_update.cases import StateCase
from kernels.state_update.memory import background, ring_of


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def softplus(x: torch.Tensor) -> torch.Tensor:
    return torch.log1p(x.exp())


class Layer:
    """One sequence: the convolution's window is shifted by one for each token, as in transformers' models, and the
    delta rule's states are [K, V], as in flash-linear-attention."""

    def __init__(self, case: StateCase, inputs: Inputs, state: torch.Tensor, past: list[torch.Tensor]) -> None:
        """`state` [H, V, K]; `past`: the tokens before, from the oldest on, as far as the ring has them."""
        self.case = case
        self.given = {n: t.double() for n, t in inputs.items() if t.is_floating_point() and n not in ("memory", "D")}
        self.skip = inputs["D"].double() if "D" in inputs else None
        self.states = [state[h].double() for h in range(case.H)]
        width = torch.zeros(case.convolved, max(case.conv, 1), dtype=torch.float64)
        for i, token in enumerate(past[-case.conv :] if case.conv else []):
            width[:, case.conv - len(past[-case.conv :]) + i] = token[: case.convolved].double()
        self.window = width

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """y [H, V] of one more token."""
        case, token = self.case, token.double()
        mixed = token[: case.convolved]
        if case.conv:
            self.window = self.window.roll(-1, 1)
            self.window[:, -1] = mixed
            mixed = (self.window * self.given["conv_weight"].T).sum(1)
            mixed = silu(mixed + self.given.get("conv_bias", torch.zeros(())))
        rest, rows = token[case.convolved :], []
        for h in range(case.H):
            rows.append(self.head(h, mixed, rest))
        return torch.stack(rows)

    def head(self, h: int, mixed: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        case, A, bias = self.case, self.given["A_log"].exp(), self.given["dt_bias"]
        g, keys, values = h // (case.H // case.G), case.G * case.K, case.H * case.V
        if case.kind in ("mamba1", "mamba2"):
            assert self.skip is not None
            x = mixed[h * case.V : (h + 1) * case.V]
            b = mixed[values + g * case.K : values + (g + 1) * case.K]
            c = mixed[values + keys + g * case.K : values + keys + (g + 1) * case.K]
            if case.kind == "mamba1":
                z, dt = rest[: case.V], softplus(rest[case.V :] + bias)
                self.states[h] = self.states[h] * (-A * dt[:, None]).exp() + torch.outer(dt * x, b)
                return (self.states[h] @ c + self.skip * x) * silu(z)
            dt = softplus(rest[h] + bias[h])
            self.states[h] = self.states[h] * (-A[h] * dt).exp() + torch.outer(dt * x, b)
            return self.states[h] @ c + self.skip[h] * x
        q, k = mixed[g * case.K : (g + 1) * case.K], mixed[keys + g * case.K : keys + (g + 1) * case.K]
        v = mixed[2 * keys + h * case.V : 2 * keys + (h + 1) * case.V]
        q, k = (x / (x.dot(x) + 1e-6).sqrt() for x in (q, k))
        if case.kind == "kda":
            decay = -A[h] * softplus(rest[h * case.K : (h + 1) * case.K] + bias[h])
            beta = rest[case.H * case.K + h]
        else:
            decay, beta = (-A[h] * softplus(rest[h] + bias[h])).expand(case.K), rest[case.H + h]
        S = self.states[h].T * decay.exp()[:, None]
        S = S + torch.outer(k, (v - S.T @ k) / (1 + (-beta).exp()))
        self.states[h] = S.T
        return S.T @ q / math.sqrt(case.K)


def past_of(case: StateCase, inputs: Inputs, b: int) -> list[torch.Tensor]:
    """The tokens before, from the oldest in the ring on; gates that it does not hold are zeros."""
    old, position, ring = case.ring - case.q_len, int(inputs["positions"][b]), int(inputs["slots"][b, 0])
    stored = ring_of(case, background(case, "cpu"))
    found = [stored[ring, (position - i) % case.ring] for i in range(old, 0, -1)] if case.ring else []
    return [torch.cat([t, torch.zeros(case.width - case.ring_width, dtype=t.dtype)]) for t in found]
