"""Which column of somebody's table means what: found by its name and the unit in it, or given with `--map`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.errors import BadRequest, require

_WORDS: dict[str, str] = {
    "time": (
        "median median_time median_latency p50 p50_latency latency_p50 latency latency_avg avg_latency mean_latency "
        "time time_avg avg_time mean_time kernel_time cuda_time gpu_time duration elapsed runtime mean avg t"
    ),
    "rate": (
        "bandwidth achieved_bandwidth effective_bandwidth memory_bandwidth mem_bandwidth dram_bandwidth throughput bw "
        "achieved_bw mem_bw memory_throughput rate"
    ),
    "flop_rate": "performance compute flops perf compute_throughput",
    "bytes": "bytes size nbytes num_bytes total_bytes bytes_moved message_size buffer_size data_size",
    "batch": "batch_size batch bs b num_seqs num_sequences batchsize nbatch",
    "m": "m num_tokens tokens num_rows rows",
    "n": "n out_features output_size output_dim n_out",
    "k": "k in_features input_size input_dim k_in",
    "heads": (
        "num_heads num_qo_heads num_q_heads num_query_heads num_attention_heads n_heads nheads heads q_heads heads_q "
        "h_q hq nheads_q head_num qo_heads"
    ),
    "kv_heads": (
        "num_key_value_heads num_kv_heads n_kv_heads kv_heads heads_kv h_kv hkv nheads_kv nheads_k num_heads_kv "
        "num_heads_k head_num_kv h_k"
    ),
    "head_dim": "head_dim headdim head_size d hdim dim_head",
    "context": (
        "context context_len context_length ctx ctx_len kv_len kv_seq_len seqlen_kv seqlen_k seq_len_kv kv_length "
        "cache_len cache_length seq_len seqlen seq_length sequence_length max_seq_len num_kv_tokens s_kv s_k"
    ),
    "input": "isl input_len input_length",
    "step": "step past_kv",
    "window": "window_size window sliding_window",
    "experts": "num_experts n_experts experts e",
    "topk": "topk top_k num_experts_per_tok experts_per_token",
    "hidden": "hidden_size hidden h hidden_dim model_dim",
    "ffn": "inter_size intermediate_size moe_intermediate_size expert_ffn ffn f ffn_dim",
    "tp": "moe_tp_size tp_size tp",
    "ep": "moe_ep_size ep_size ep",
    "routing": "distribution routing expert_distribution workload_distribution",
    "latent": "kv_lora_rank latent_dim",
    "claimed": (
        "pct_of_peak percent_of_peak of_peak peak_pct pct_peak utilization util mbu mfu bandwidth_utilization bw_util "
        "bw_utilization hbm_util sol efficiency of_roof pct_of_roof share share_of_roof"
    ),
    "dtype": (
        "gemm_dtype moe_dtype attn_dtype mla_dtype dtype data_type type precision quant quantization weights "
        "weight_dtype w_dtype"
    ),
    "kv_dtype": "kv_cache_dtype kv_dtype cache_dtype kv",
    "op": "op_name op operation operator kernel_name kernel kind benchmark bench name test",
    "part": "device gpu part device_name gpu_name hardware accelerator system gpu_type",
}
NAMES = {role: tuple(words.split()) for role, words in _WORDS.items()}
"""Roles, and the names under which they are found, the best first. A name is compared in lower case, without its unit;
what is no letter or digit counts as `_`."""

TIME = {"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0}
TIME |= dict.fromkeys(("ms", "msec", "millis", "milliseconds"), 1e-3)
TIME |= dict.fromkeys(("us", "usec", "micros", "microseconds"), 1e-6)
TIME |= dict.fromkeys(("ns", "nsec", "nanoseconds"), 1e-9)
RATE = {"gb_s": 1e9, "gbs": 1e9, "gbps": 1e9, "gib_s": 2.0**30, "gibps": 2.0**30, "mb_s": 1e6, "mbps": 1e6}
RATE |= {"tb_s": 1e12, "tbs": 1e12, "tbps": 1e12, "tib_s": 2.0**40}
FLOP_RATE = {"tflops": 1e12, "tflop_s": 1e12, "tflops_s": 1e12, "gflops": 1e9, "gflop_s": 1e9, "pflops": 1e15}
FLOP_RATE |= {"flop_s": 1.0, "tops": 1e12}
SIZE = {"bytes": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
UNITS = {"time": TIME, "rate": RATE, "flop_rate": FLOP_RATE, "bytes": SIZE}
"""Roles with units, and their units in SI."""

CAPITAL = {
    "T": ("context",),
    "S": ("context",),
    "B": ("batch",),
    "H": ("hidden", "heads"),
    "D": ("head_dim",),
    "E": ("experts",),
    "F": ("ffn",),
}
"""What single letters mean as capitals."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Where a role's values come from: a column of the table, or a constant that `--map` gives."""

    role: str
    source: str
    scale: float | None = None
    """Its unit in SI; None where the name has no unit."""
    constant: bool = False
    others: tuple[str, ...] = ()
    """Columns of the same meaning that fill in where this one is empty."""


def plain(name: str) -> str:
    """`Latency (µs)` -> `latency_us`, `GB/s` -> `gb_s`."""
    text = str(name).strip().replace("µ", "u").replace("μ", "u")
    text = re.sub(r"([a-z])([A-Z][a-z])", r"\1_\2", text)
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def with_unit(name: str, role: str) -> tuple[str, float | None]:
    """The name without its unit, and the unit; a name may be the unit alone, as `us` or `GB/s`."""
    for unit in sorted(UNITS.get(role, {}), key=len, reverse=True):
        before, found, after = f"_{name}_".partition(f"_{unit}_")
        if found and (len(unit) > 1 or not after):
            return f"{before}_{after}".strip("_"), UNITS[role][unit]
    return name, None


def recognise(role: str, name: str) -> tuple[int, float | None] | None:
    """How good a name is for a role (0 is best) and its unit; None where it does not mean the role."""
    if name in CAPITAL:
        return (0, None) if role in CAPITAL[name] else None
    bare, scale = with_unit(plain(name), role)
    if role in ("time", "bytes") and any(with_unit(plain(name), other)[1] for other in ("rate", "flop_rate")):
        return None  # the s of GB/s is no unit of time
    if bare in NAMES[role]:
        return NAMES[role].index(bare), scale
    # the unit alone, or behind a word that no role knows: `us`, `ours_us`, `triton_tflops`
    if scale is not None and role != "bytes" and (bare == "" or not known(bare)):
        return len(NAMES[role]) + (1 if bare else 0), scale
    return None


def known(bare: str) -> bool:
    return any(bare in names for names in NAMES.values())


def find(names: Sequence[str]) -> dict[str, Column]:
    """The best column of each role. Of two columns that fit equally well, the first is taken."""
    found: dict[str, Column] = {}
    for role in NAMES:
        fitting = [(fit, name) for name in names if (fit := recognise(role, name))]
        fitting.sort(key=lambda each: each[0][0])
        if fitting:
            ((_, scale), name), *rest = fitting
            others = tuple(other for (rank, unit), other in rest if unit == scale and rank < len(NAMES[role]))
            found[role] = Column(role=role, source=name, scale=scale, others=others)
    return found


def spare(names: Sequence[str], found: Mapping[str, Column]) -> list[str]:
    """Columns of times or rates with a unit that no role uses: other implementations in the same row, for example."""
    used = {name for column in found.values() for name in (column.source, *column.others)}
    timed = [role for role in ("time", "rate", "flop_rate") if role in found]
    return [n for n in names if n not in used and any((fit := recognise(role, n)) and fit[1] for role in timed)]


def given(mapping: Iterable[str], names: Sequence[str]) -> dict[str, Column]:
    """The columns of `--map`: `ROLE=COLUMN`, `ROLE=COLUMN:UNIT`, or a constant such as `n=6144` or `dtype=bf16`.

    Raises `BadRequest` for an unknown role or unit, and for a value that is neither a column nor a constant.
    """
    found: dict[str, Column] = {}
    for text in mapping:
        role, equals, source = text.partition("=")
        if not equals or not source:
            raise BadRequest(f"--map {text}: expected ROLE=COLUMN, ROLE=COLUMN:UNIT or ROLE=VALUE")
        require("role of --map", [role], NAMES)
        if source in names:
            _, scale = with_unit(plain(source), role)
            found[role] = Column(role=role, source=source, scale=scale)
            continue
        column, colon, unit = source.rpartition(":")
        if colon and column in names:
            if role not in UNITS:
                raise BadRequest(f"--map {text}: {role} has no unit")
            require(f"unit of {role}", [plain(unit)], UNITS[role])
            found[role] = Column(role=role, source=column, scale=UNITS[role][plain(unit)])
        elif role in ("dtype", "kv_dtype", "op", "part", "routing") or is_number(source):
            found[role] = Column(role=role, source=source, scale=1.0, constant=True)
        else:
            raise BadRequest(f"--map {text}: the table has no column {source!r}, it has {', '.join(names)}")
    return found


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def described(columns: Mapping[str, Column]) -> dict[str, str]:
    """`{"time": "latency_ms", "n": "6144 (given)"}`."""
    return {role: c.source + (" (given)" if c.constant else "") for role, c in columns.items()}
