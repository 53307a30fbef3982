"""NVIDIA's aiconfigurator tables -> published rows. Needs the extra `published` (pyarrow).

One function for each kind of table says which of its rows are ours, and what their columns mean in our terms. A time is
in milliseconds there. Rows that are not decode, or of which a column leaves open what was read, are counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from bench.devices import DEVICES
from bench.errors import BadRequest
from bench.judge.published.table import Array, Table, joined
from bench.judge.published.wheel import Package
from bench.judge.published.work import WARM, work

PARTS = {
    "a100_sxm": "a100-80",
    "h100_sxm": "h100-sxm",
    "h100_pcie": "h100-pcie",
    "h200_sxm": "h200",
    "b200_sxm": "b200",
    "b300_sxm": "b300",
    "gb200": "gb200",
    "gb300": "gb300",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
TYPES = {
    "bfloat16": "bf16",
    "half": "fp16",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int8_wo": "int8",
    "int4_wo": "int4",
    "sq": "int8",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4",
}
"""How a type in their tables is stored."""
MULTIPLIED = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "nvfp4", "sq": "int8", "w4a8_mxfp4_mxfp8": "fp8"}
"""The type in which such weights are multiplied, where it is not bf16."""

SHAPE = ("B", "H_q", "H_kv", "D", "T", "window", "N", "K", "E", "k", "H", "F", "tp")
"""Columns of whole numbers that tell a case, whatever its operation."""
LARGEST = 256
"""Most rows of x, and most tokens of a MoE, that count as decode."""

Codes = tuple[Array, tuple[str, ...]]
"""Codes and the names that they stand for."""


@dataclass
class Sheet:
    """One parquet table: arrays by column, texts as codes; and why some of its rows are not taken."""

    part: str
    software: str
    version: str
    name: str
    columns: dict[str, Any]
    rows: int
    left_out: Counter[str] = field(default_factory=Counter)

    def __getitem__(self, column: str) -> Array:
        values: Array = self.columns[column]
        return values

    def text(self, column: str, known: dict[str, str]) -> Array:
        """A text column's values in our words, `""` where `known` has none."""
        codes, names = self.columns[column]
        return np.array([known.get(name, "") for name in names], dtype=object)[codes]

    def matches(self, column: str, test: Callable[[str], bool]) -> Array:
        codes, names = self.columns[column]
        return np.array([test(name) for name in names], dtype=bool)[codes]

    def keep(self, mask: Array, but: str) -> None:
        """Drop the rows outside the mask and count them under `but`."""
        dropped = int(self.rows - mask.sum())
        if dropped:
            self.left_out[but] += dropped
            index = np.flatnonzero(mask)
            self.columns = {
                name: (value[0][index], value[1]) if isinstance(value, tuple) else value[index]
                for name, value in self.columns.items()
            }
            self.rows = len(index)

    def table(
        self, op: Array | str, *, stored: Array | str, activations: Array | str = "bf16", **fields: Array | int
    ) -> Table:
        """The rows that are left, as rows of `op`."""
        columns: dict[str, Array] = {}
        names: dict[str, tuple[str, ...]] = {}
        texts: dict[str, Array | str] = {
            "op": op,
            "part": PARTS[self.part],
            "software": self.software,
            "version": self.version,
            "source": f"{self.part}/{self.name}",
            "stored": stored,
            "activations": activations,
            "routing": "",
        }
        for name, value in texts.items():
            if isinstance(value, str):
                names[name], columns[name] = (value,), np.zeros(self.rows, dtype=np.int32)
            else:
                found, codes = np.unique(value.astype(str), return_inverse=True)
                names[name], columns[name] = tuple(map(str, found)), codes.astype(np.int32)
        columns["kernel"], names["kernel"] = self.columns["kernel_source"]
        if "distribution" in self.columns:
            columns["routing"], names["routing"] = self.columns["distribution"]
        for name, field_ in fields.items():
            columns[name] = np.broadcast_to(np.asarray(field_, dtype=np.int64), (self.rows,))
        columns["seconds"] = self["latency"] * 1e-3
        return Table(columns=columns, names=names, left_out=dict(self.left_out))


def _attention(sheet: Sheet) -> Table:
    sheet.keep(sheet["isl"] == 1, "several query tokens: not plain decode")
    heads = sheet["num_heads"]
    kv_heads = np.where(sheet["num_key_value_heads"] == 0, heads, sheet["num_key_value_heads"])
    return sheet.table(
        "attention_decode",
        stored=sheet.text("kv_cache_dtype", TYPES),
        B=sheet["batch_size"],
        H_q=heads,
        H_kv=kv_heads,
        D=sheet["head_dim"],
        T=sheet["isl"] + sheet["step"],
        window=sheet.columns.get("window_size", 0),
    )


def _products(sheet: Sheet) -> Table:
    sheet.keep(sheet["m"] <= LARGEST, f"more than {LARGEST} rows of x: not decode")
    return sheet.table(
        "ffn_gemv",
        stored=sheet.text("gemm_dtype", TYPES),
        activations=np.where(sheet.text("gemm_dtype", MULTIPLIED) == "", "bf16", sheet.text("gemm_dtype", MULTIPLIED)),
        B=sheet["m"],
        N=sheet["n"],
        K=sheet["k"],
    )


def _mla(sheet: Sheet) -> Table:
    sheet.keep(sheet["isl"] == 1, "several query tokens: not plain decode")
    return sheet.table(
        "mla_decode",
        stored=sheet.text("kv_cache_dtype", TYPES),
        B=sheet["batch_size"],
        H=sheet["num_heads"],
        T=sheet["isl"] + sheet["step"],
    )


NON_GATED = {(2048, 5120, 22, 512), (2688, 1856, 6, 128), (8192, 5120, 22, 512), (1024, 2688, 22, 512)}
"""hidden, inter, topk, experts of Nemotron's layers: TensorRT-LLM's tables call their kernel `nongated`. Other engines
run the same layers under a general name."""


def _moe(sheet: Sheet) -> Table:
    sheet.keep(sheet["num_tokens"] <= LARGEST, f"more than {LARGEST} tokens: not decode")
    sheet.keep(sheet.text("moe_dtype", TYPES) != "", "weights of a type that has no name here")
    sheet.keep(sheet["moe_ep_size"] == 1, "expert parallelism: which experts the measured part holds is not published")
    shape = [sheet[name] for name in ("hidden_size", "inter_size", "topk", "num_experts")]
    gated = ~sheet.matches("kernel_source", lambda name: "nongated" in name)
    for listed in NON_GATED:
        gated &= ~np.logical_and.reduce([column == value for column, value in zip(shape, listed, strict=True)])
    multiplied = sheet.text("moe_dtype", MULTIPLIED)
    return sheet.table(
        "moe_ffn",
        stored=sheet.text("moe_dtype", TYPES),
        activations=np.where(multiplied == "", "bf16", multiplied),
        B=sheet["num_tokens"],
        E=sheet["num_experts"],
        k=sheet["topk"],
        H=sheet["hidden_size"],
        F=sheet["inter_size"],
        tp=sheet["moe_tp_size"],
        gated=gated,
        balanced=sheet.matches("distribution", lambda name: name == "balanced"),
    )


def _updates(sheet: Sheet) -> None:
    sheet.keep(sheet.matches("phase", lambda name: name == "generation"), "prefill or verification: not plain decode")
    conv = sheet.matches("kernel_source", lambda name: "conv1d" in name)
    sheet.keep(~conv, "the convolution before a state's update")


def _deltas(op: str) -> Callable[[Sheet], Table]:
    def reader(sheet: Sheet) -> Table:
        _updates(sheet)
        heads = {"H": sheet["num_v_heads"], "H_kv": sheet["num_k_heads"]}
        dims = heads | {"D": sheet["head_v_dim"], "N": sheet["head_k_dim"]}
        return sheet.table(op, stored="fp32", B=sheet["batch_size"], **dims)

    return reader


def _mamba(sheet: Sheet) -> Table:
    _updates(sheet)
    dims = {"H": sheet["nheads"], "D": sheet["head_dim"], "N": sheet["d_state"]}
    return sheet.table("state_update", stored="bf16", B=sheet["batch_size"], **dims)


COLLECTIVES = {"all_reduce": "all_reduce", "alltoall": "all_to_all"}


def _collectives(sheet: Sheet) -> Table:
    """Sizes are in elements: an all-gather of 16-bit elements takes twice as long as one of as many 8-bit elements.
    Those of an all-to-all are what each part sends, those for itself included, as in `nccl-tests`."""
    op = sheet.text("op_name", COLLECTIVES)
    sheet.keep(op != "", "a collective that a decode step does not need")
    types = "nccl_dtype" if "nccl_dtype" in sheet.columns else "allreduce_dtype"
    sheet.keep(sheet.matches(types, lambda name: name in ("half", "bfloat16")), "a reduction of integers")
    op = sheet.text("op_name", COLLECTIVES)
    return sheet.table(op, stored="bf16", N=sheet["message_size"], tp=sheet["num_gpus"])


def _exchanges(sheet: Sheet) -> Table:
    """DeepEP's dispatch and combine of the experts' rows, on the GPUs of one server. Tokens are those of each GPU.

    The collector (`collector/wideep/trtllm/collect_moe_a2a.py` of ai-dynamo/aiconfigurator) puts events around a call
    of TensorRT-LLM and waits for the GPU after each: without a graph, the time holds the launch from the host.
    """
    sheet.keep(sheet.matches("comm_backend", lambda name: name.endswith("deepep_ll")), "kernels for prefill")
    sheet.keep(sheet["num_tokens"] <= LARGEST, f"more than {LARGEST} tokens: not decode")
    sheet.keep(sheet["node_num"] == 1, "experts on several servers")
    sheet.keep(sheet.text("comm_dtype", TYPES) == "bf16", "rows in a type that is not ours, or is not published")
    codes, names = sheet.columns["kernel_source"]
    sheet.columns["kernel_source"] = codes, tuple(f"{name} eager" for name in names)
    sheet.columns["latency"] = sheet["latency"] * 1e-3  # microseconds in this table, not milliseconds
    fields = {"B": "num_tokens", "E": "num_experts", "k": "topk", "H": "hidden_size", "tp": "ep_size"}
    return sheet.table(
        sheet.text("phase", {phase: phase for phase in ("dispatch", "combine")}),
        stored="bf16",
        **{name: sheet[column] for name, column in fields.items()},
    )


TIMES = ("latency", "dispatch_avg_t_us", "combine_avg_t_us")
PHASES = {"dispatch": "fp8", "combine": "bf16"}
"""How DeepEP's low-latency kernels store the rows that go out to experts and those that come back."""


def _kernels_of_exchanges(sheet: Sheet) -> Table:
    """The same kernels by the GPU's clock, as DeepEP's own test runs them: torch's profiler times each kernel, and the
    ranks meet before (`collector/deep_collector/test_low_latency.py` of ai-dynamo/aiconfigurator). Each row of the
    table is a dispatch in fp8 and a combine in bf16, in microseconds."""
    sheet.keep(sheet["num_token"] <= LARGEST, f"more than {LARGEST} tokens: not decode")
    sheet.keep(sheet["node_num"] == 1, "experts on several servers")
    whole = np.full(sheet.rows, sheet.part.endswith("_sxm"))
    sheet.keep(whole, "DeepEP on a rack: how many parts take part is not published")
    fields = {"B": "num_token", "E": "num_experts", "k": "num_topk", "H": "hidden_size"}
    found = []
    for phase, stored in PHASES.items():
        sheet.columns["latency"] = sheet[f"{phase}_avg_t_us"] * 1e-3
        shape = {name: sheet[column] for name, column in fields.items()}
        found.append(sheet.table(phase, stored=stored, tp=8, **shape))
    return joined(found) if sheet.rows else found[0]


def _topk(sheet: Sheet) -> Table:
    sheet.keep(sheet["isl"] == 1, "several query tokens: not plain decode")
    return sheet.table("dsa_topk", stored="fp32", B=sheet["batch_size"], T=sheet["isl"] + sheet["step"], k=2048)


def _indexer(sheet: Sheet) -> Table:
    sheet.keep(sheet["isl"] == 1, "several query tokens: not plain decode")
    heads = sheet["num_heads"]
    fields = {"B": sheet["batch_size"], "H": heads, "T": sheet["isl"] + sheet["step"]}
    return sheet.table("dsa_indexer", stored="fp8", activations="fp8", **fields)


READERS: dict[str, Callable[[Sheet], Table]] = {
    "generation_attention_perf": _attention,
    "gemm_perf": _products,
    "generation_mla_perf": _mla,
    "moe_perf": _moe,
    "gdn_perf": _deltas("gated_delta_net"),
    "kda_perf": _deltas("kda"),
    "mamba2_perf": _mamba,
    "nccl_perf": _collectives,
    "custom_allreduce_perf": _collectives,
    "moe_a2a_perf": _exchanges,
    "wideep_deepep_ll_perf": _kernels_of_exchanges,
    "glm5_topk_module_perf": _topk,
    "glm5_mqa_logits_module_perf": _indexer,
}
"""Who reads which table, by its name."""


def _reason(name: str) -> str:
    """Why a table without a reader is left out."""
    if "context" in name or "encoder" in name:
        return "a table of prefill"
    if "module" in name or "megamoe" in name:
        return "a table of whole modules: several operations in one time"
    if any(word in name for word in ("deepep", "a2a", "alltoall", "oneccl")):
        return "a table of expert dispatch, or of another vendor's collectives"
    return "a table of an operation that this project does not know"


def read(package: Package) -> Table:
    """All rows of the package that map. Raises `BadRequest` without pyarrow or tables."""
    left_out: Counter[str] = Counter()
    found = []
    for sheet in sheets(package, left_out):
        table = READERS[sheet.name](sheet)
        left_out.update(sheet.left_out)
        if len(table):
            found.append(Table(columns=table.columns, names=table.names))
    if not found:
        raise BadRequest(f"{package.where} holds no tables that can be read")
    table = joined(found)
    zeros = np.zeros(len(table), dtype=np.int32)
    columns = dict.fromkeys((*SHAPE, "gated", "balanced"), zeros) | dict(table.columns) | {"cache": _cache(table)}
    names = dict(table.names) | {"cache": ("cold", "unknown", "warm")}
    return Table(columns=columns, names=names, left_out=dict(left_out))


def sheets(package: Package, left_out: Counter[str]) -> Iterator[Sheet]:
    """Each table that has a reader and a known part, in the order of names; the rows of others are counted."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise BadRequest(f"{error}: reading the tables needs the extra `published` (pyarrow)") from None

    for name in package.names:
        if not name.endswith(".parquet"):
            continue
        path = PurePosixPath(name)
        _, part, _, software, version = path.parts[:5]
        try:
            file = parquet.ParquetFile(pyarrow.BufferReader(package.read(name)))
            if path.stem not in READERS:
                left_out[_reason(path.stem)] += file.metadata.num_rows
            elif PARTS.get(part) not in DEVICES:
                left_out[f"a part that `bench/devices` does not know: {part}"] += file.metadata.num_rows
            else:
                arrow = file.read()
                columns = {column: _values(arrow.column(column)) for column in arrow.column_names}
                sheet = Sheet(part, software, version, path.stem, columns, arrow.num_rows)
                for time in (column for column in columns if column in TIMES):
                    sheet.keep(np.isfinite(sheet[time]) & (sheet[time] > 0), "a time of zero, or none")
                yield sheet
        except (OSError, ValueError) as error:
            raise BadRequest(f"{name} of {package.where} is no parquet table: {error}") from None


def _values(column: Any) -> Any:
    """An Arrow column as an array, or as codes and names."""
    whole = column.combine_chunks()
    if whole.type in ("string", "large_string"):
        whole = whole.dictionary_encode()
    if hasattr(whole, "dictionary"):
        return whole.indices.to_numpy(), tuple(whole.dictionary.to_pylist())
    return whole.to_numpy(zero_copy_only=False)


def _cache(table: Table) -> Array:
    """Whether a buffer that is read again and again stays in the L2: the code of cold, unknown or warm."""
    l2 = np.array([(DEVICES[part].on_chip.value if DEVICES[part].on_chip else np.nan) for part in table.names["part"]])  # type: ignore[union-attr]
    size = work(table).bytes
    limit = WARM * l2[table["part"]]
    return np.where(np.isnan(limit), 1, np.where(size < limit, 2, 0)).astype(np.int32)
