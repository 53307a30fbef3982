"""Published rows as cases of our operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.judge.published.table import Table
from bench.judge.published.work import EXCHANGES
from kernels.op import Case, discover


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """How an operation's rows become cases: our operation, its fields by our columns, and what all rows have."""

    op: str
    columns: Mapping[str, str]
    """The table's column by the case's field."""
    stored: str = ""
    """The case's field that holds the stored type."""
    activations: str = ""
    """The case's field that holds the type of activations, if they are fp8."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    product: tuple[str, ...] = ()
    """Fields whose product is the case's size `elements`."""

    def sized(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """The case with all that `columns` asks for."""
        if not all(name in case for name in self.product):
            return dict(case)
        return {**case, "elements": math.prod(case[name] for name in self.product)}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


STATE = {"B": "B", "H": "H", "G": "H_kv", "V": "D", "K": "N"}
MAPPED = {
    "attention_decode": Mapped(
        op="attention_decode", columns=_same("B", "H_q", "H_kv", "D", "T", "window"), stored="kv"
    ),
    "mla_decode": Mapped(op="mla_decode", columns=_same("B", "H", "T"), stored="kv"),
    "ffn_gemv": Mapped(op="ffn_gemv", columns=_same("B", "N", "K"), stored="weights", activations="activations"),
    "moe_ffn": Mapped(op="moe_ffn", columns=_same("B", "E", "k", "H", "F"), stored="weights"),
    "gated_delta_net": Mapped(op="state_update", columns=STATE, fixed={"kind": "gated_delta", "conv": 0}),
    "kda": Mapped(op="state_update", columns=STATE, fixed={"kind": "kda", "conv": 0}),
    "all_reduce": Mapped(
        op="all_reduce",
        columns={"elements": "N", "ranks": "tp"},
        stored="dtype",
        fixed={"fused": False},
        product=("B", "hidden"),
    ),
    **{
        direction: Mapped(
            op="all_to_all",
            columns={"B": "B", "E": "E", "k": "k", "hidden": "H", "ranks": "tp"},
            stored="dtype",
            fixed={"direction": direction, "idle": 0},
        )
        for direction in EXCHANGES
    },
}
"""The published operations that are ours too. MoE rows of `tp` parts have experts of F / tp columns."""


def case_of(table: Table, row: int) -> tuple[str, Case] | None:
    """Our operation and case of a row; None where the project has no such operation or no such type of weights."""
    mapped = MAPPED.get(table.names["op"][table["op"][row]])
    if mapped is None:
        return None
    fields: dict[str, Any] = {name: int(table[column][row]) for name, column in mapped.columns.items()}
    if mapped.op == "moe_ffn":
        if not table["gated"][row]:
            return None
        fields["F"] //= max(1, int(table["tp"][row]))
    if mapped.product:  # a message of so many elements, as one row
        fields |= {**dict.fromkeys(mapped.product, 1), mapped.product[-1]: fields.pop("elements")}
    if mapped.stored:
        fields[mapped.stored] = table.names["stored"][table["stored"][row]]
    activations = table.names["activations"][table["activations"][row]]
    if activations in ("nvfp4", "int8"):  # our products with such weights have 16-bit activations
        return None
    if mapped.activations and activations == "fp8":
        fields[mapped.activations] = "fp8"
    try:
        return mapped.op, discover()[mapped.op].case_from_dict({**fields, **mapped.fixed})
    except ValueError:
        return None
