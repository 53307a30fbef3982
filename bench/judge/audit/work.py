"""What each row must move and compute at least: our operations' own `work`, for whole tables at once.

`Op.work` of equal sequences grows by the same amount with each row of the batch. So it is asked twice for each distinct
shape, at batch 1 and 2, and every row of the table follows from these two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd

from bench.judge.audit.columns import plain
from bench.predict.step_work import expected_experts
from kernels.common.quantization import FORMATS, weight_bytes
from kernels.op import discover

OPS: dict[str, tuple[str, ...]] = {
    "moe_ffn": ("m", "experts", "topk", "hidden", "ffn"),
    "ffn_gemv": ("m", "n", "k"),
    "mla_decode": ("batch", "heads", "context"),
    "attention_decode": ("batch", "heads", "head_dim", "context"),
    "stream": ("bytes",),
}
"""The operations that can be audited, and the roles that each must have. The first whose roles a row has is the row's,
unless the row names another one."""

WORDS = {
    "mla_decode": r"mla",
    "moe_ffn": r"moe|expert|grouped",
    "attention_decode": r"attn|attention|mha|gqa|mqa|flash_?decod",
    "ffn_gemv": r"gemm|gemv|linear|matmul|(?:^|_)mm(?:$|_)",
    "stream": r"copy|memcpy|triad|stream|(?:^|_)read|(?:^|_)write|scale|(?:^|_)add(?:$|_)|memset|init",
}
"""What a row's own name of its operation contains; the first that fits is taken."""

PREFILL = r"context_attention|prefill|extend|varlen_fwd|context_mla"

TYPES: tuple[tuple[str, str, str, float], ...] = (
    (r"w4a16|w4_?a_?16|fp4_?wo|a16_?mxfp4", "mxfp4", "mma_bf16", 2),
    (r"w4a8|w4afp8|w4_?fp8", "int4", "mma_fp8", 1),
    (r"nvfp4|mxfp4|fp4|e2m1", "mxfp4", "mma_fp4", 0.5),
    (r"int4|uint4|awq|gptq|marlin|w4|q4", "int4", "mma_bf16", 2),
    (r"int8_?wo|w8a16", "int8", "mma_bf16", 2),
    (r"fp8_?block|block_?fp8|deepgemm", "fp8_block", "mma_fp8", 1),
    (r"fp8|e4m3|e5m2|float8|mxfp8", "fp8", "mma_fp8", 1),
    (r"int8|w8a8|(?:^|_)sq(?:$|_)", "int8", "mma_int8", 1),
    (r"tf32", "fp32", "mma_tf32", 4),
    (r"fp32|float32|(?:^|_)float(?:$|_)|f32", "fp32", "fma_fp32", 4),
    (r"bf16|bfloat16", "bf16", "mma_bf16", 2),
    (r"fp16|float16|half|f16", "fp16", "mma_bf16", 2),
    (r"^$|none|auto", "bf16", "mma_bf16", 2),
)
"""By what the name of an element type contains: the weights' format, the pipe that multiplies, bytes of an activation.
The first that fits is taken. nvfp4 has more scales than mxfp4, so mxfp4 stays a floor."""

BALANCED = r"^$|balanced|uniform|^nan$"
"""Routing under which tokens hit at least as many experts as independent choices do."""


def named(texts: pd.Series, patterns: Mapping[str, str]) -> pd.Series:
    """The key of the first pattern that each text contains, empty where none fits."""
    words = texts.map({text: plain(text) for text in texts.unique()})
    found = pd.Series("", index=texts.index)
    for key, pattern in reversed(list(patterns.items())):
        found = found.mask(words.str.contains(pattern, regex=True), key)
    return found


def operations(rows: pd.DataFrame) -> pd.Series:
    """Which of `OPS` each row is; `rate` for a bare rate, empty for none."""
    has = {op: rows.reindex(columns=roles).notna().all(axis=1) for op, roles in OPS.items()}
    if "latent" not in rows:
        has["mla_decode"] = pd.Series(False, index=rows.index)
    bare = rows["rate"].notna() if "rate" in rows else pd.Series(False, index=rows.index)
    by_shape = pd.Series(np.where(bare, "rate", ""), index=rows.index)
    for op in reversed(OPS):
        by_shape = by_shape.mask(has[op], op)
    if "op" not in rows:
        return by_shape
    said = named(rows["op"], WORDS)
    able = pd.Series(False, index=rows.index)
    for op, roles in OPS.items():
        able |= (said == op) & rows.reindex(columns=roles).notna().all(axis=1)
    return by_shape.mask(able, said)


def types(texts: pd.Series) -> pd.DataFrame:
    """Format, pipe and bytes of an activation for each name of an element type; format is empty where it is unknown."""
    patterns = {str(i): pattern for i, (pattern, *_) in enumerate(TYPES)}
    which = named(texts, patterns)
    table = {str(i): row for i, (_, *row) in enumerate(TYPES)} | {"": ["", "", np.nan]}
    found = pd.DataFrame([table[i] for i in which], columns=["format", "pipe", "activation"], index=texts.index)
    return found


def compulsory(op: str, cases: pd.DataFrame, shared: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Bytes and FLOPs of `Op.work` for cases that differ in these fields; `B` is one of them.

    A row whose fields no case allows has NaN, and says why under `reason`.
    """
    operation = discover()[op]
    fields = [name for name in cases.columns if name != "B"]
    which = cases.groupby(fields, sort=False, dropna=False).ngroup().to_numpy()
    distinct = cases[fields].iloc[np.unique(which, return_index=True)[1]]
    found: list[tuple[float, float, float, float, str]] = []
    for values in distinct.itertuples(index=False):
        given = dict(zip(fields, map(as_plain, values), strict=True)) | dict(shared or {})
        try:
            one, two = (operation.work(operation.case_from_dict({**given, "B": B})) for B in (1, 2))
        except ValueError as error:
            found.append((np.nan, 0, np.nan, 0, str(error)))
        else:
            found.append((one.bytes, two.bytes - one.bytes, one.total_flops, two.total_flops - one.total_flops, ""))
    bytes_1, per_row, flops_1, flops_per_row, reason = (
        np.array(column, dtype=object if i == 4 else float)[which] for i, column in enumerate(zip(*found, strict=True))
    )
    more = cases["B"].to_numpy(float) - 1
    return pd.DataFrame(
        {"bytes": bytes_1 + more * per_row, "flops": flops_1 + more * flops_per_row, "reason": reason},
        index=cases.index,
    )


def as_plain(value: Any) -> Any:
    return int(value) if isinstance(value, int | float | np.integer | np.floating) else value


def integers(rows: pd.DataFrame, roles: Sequence[str], defaults: Mapping[str, float]) -> pd.DataFrame:
    found = rows.reindex(columns=list(roles))
    return found.fillna({role: defaults[role] for role in roles if role in defaults}).astype("int64")


def of_gemm(rows: pd.DataFrame) -> pd.DataFrame:
    kind = types(rows.get("dtype", pd.Series("", index=rows.index)))
    shape = integers(rows, ("m", "n", "k"), {})
    sixteen = kind["format"].where(kind["format"].isin(("bf16", "fp16", "fp32")), "bf16")
    cases = pd.DataFrame({"B": shape["m"], "N": shape["n"], "K": shape["k"], "dtype": sixteen})
    cases["weights"] = kind["format"]
    found = compulsory("ffn_gemv", cases)
    size = sixteen.map({"bf16": 2, "fp16": 2, "fp32": 4})
    found["bytes"] -= cases["B"] * cases["K"] * (size - kind["activation"])
    return found.assign(pipe=kind["pipe"])


def of_attention(rows: pd.DataFrame) -> pd.DataFrame:
    dtype = rows.get("kv_dtype", rows.get("dtype", pd.Series("", index=rows.index)))
    kind = types(dtype)
    shape = integers(
        rows, ("batch", "heads", "kv_heads", "head_dim", "context", "window"), {"kv_heads": 0, "window": 0}
    )
    shape["kv_heads"] = shape["kv_heads"].where(shape["kv_heads"] > 0, shape["heads"])
    eight = kind["format"].isin(("fp8", "fp8_block", "int8"))
    cases = shape.set_axis(["B", "H_q", "H_kv", "D", "T", "window"], axis=1)
    cases["window"] = cases["window"].where((cases["window"] > 0) & (cases["window"] < cases["T"]), 0)
    cases["kv"] = np.where(eight, kind["format"].str.removesuffix("_block"), "")
    cases["dtype"] = kind["format"].where(kind["format"].isin(("fp16", "fp32")), "bf16")
    found = compulsory("attention_decode", cases)
    found.loc[kind["pipe"] == "mma_fp4", "reason"] = "a 4-bit cache is not known here"
    return found.assign(pipe=kind["pipe"].where(eight, "mma_bf16"))


def of_mla(rows: pd.DataFrame) -> pd.DataFrame:
    """A cache in 8 bits is taken to have no scales, and its rotary keys in 8 bits: the least that anybody stores."""
    dtype = rows.get("kv_dtype", rows.get("dtype", pd.Series("", index=rows.index)))
    kind = types(dtype)
    shape = integers(rows, ("batch", "heads", "context"), {})
    cases = shape.set_axis(["B", "H", "T"], axis=1)
    found = compulsory("mla_decode", cases)
    default = discover()["mla_decode"].defaults
    eight = kind["activation"] == 1
    found["bytes"] -= np.where(eight, cases["B"] * cases["T"] * (default["L"] + default["R"]), 0)
    return found.assign(pipe=kind["pipe"].where(eight, "mma_bf16"))


def of_moe(rows: pd.DataFrame) -> pd.DataFrame:
    """Each expert that a token is expected to hit is read once; under other than balanced routing, only k of them.

    With `ep` devices, one of them holds that part of the experts; with `tp`, it holds that part of each expert.
    """
    kind = types(rows.get("dtype", pd.Series("", index=rows.index)))
    shape = integers(rows, ("m", "experts", "topk", "hidden", "ffn", "tp", "ep"), {"tp": 1, "ep": 1})
    width = shape["ffn"] // shape["tp"].clip(lower=1)
    cases = pd.DataFrame({"B": shape["m"], "E": shape["topk"], "k": shape["topk"], "H": shape["hidden"], "F": width})
    found = compulsory("moe_ffn", cases)  # E = k: every token reads k experts, the same ones
    read = expert_bytes(pd.Series("bf16", index=rows.index), cases)
    model = cast(Any, SimpleNamespace(experts=shape["experts"], real_experts_per_token=shape["topk"]))
    balanced = rows["routing"].str.contains(BALANCED, regex=True) if "routing" in rows else True
    hit = np.where(balanced, expected_experts(model, cast(Any, shape["m"])), shape["topk"])
    share = 1 / shape["ep"].clip(lower=1)
    found["bytes"] += hit * share * expert_bytes(kind["format"], cases) - shape["topk"] * read
    found["flops"] *= share
    return found.assign(pipe=kind["pipe"])


def expert_bytes(formats: pd.Series, cases: pd.DataFrame) -> pd.Series:
    """Bytes of gate, up and down of one expert, scales included."""
    found = pd.Series(np.nan, index=cases.index)
    H, F = (cast(Any, cases[name].to_numpy()) for name in ("H", "F"))
    for name in formats.unique():
        if name in FORMATS:
            size = weight_bytes(name, 2 * F, H, 2) + weight_bytes(name, H, F, 2)
        else:
            size = 3 * H * F * {"fp32": 4}.get(name, 2)
        found = found.mask(formats == name, pd.Series(size, index=cases.index))
    return found


def of_stream(rows: pd.DataFrame) -> pd.DataFrame:
    """A copy reads and writes its bytes, a triad moves three times as many; other streams move them once."""
    words = rows["op"].map(plain) if "op" in rows else pd.Series("", index=rows.index)
    factor = np.where(words.str.contains("triad"), 3, np.where(words.str.contains("copy|memcpy"), 2, 1))
    return pd.DataFrame({"bytes": rows["bytes"] * factor, "flops": 0.0, "reason": "", "pipe": ""}, index=rows.index)


MAKERS = {
    "ffn_gemv": of_gemm,
    "attention_decode": of_attention,
    "mla_decode": of_mla,
    "moe_ffn": of_moe,
    "stream": of_stream,
}
