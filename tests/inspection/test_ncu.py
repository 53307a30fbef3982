"""What ncu prints is read right, on output recorded on real machines; `data/README.md` says what was recorded where."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bench import machine
from bench.inspection import counters, ncu
from bench.inspection.ncu import SUMS, Row
from tests.support import DATA

RAW = (DATA / "ncu_raw_by_hand.csv").read_text()
ENTRY = {"op": "x", "impl": "triton", "case_id": "B1", "declared_read": 0, "declared_written": 0}


def test_rows_are_named_by_their_nvtx_range_and_separators_are_dropped() -> None:
    rows = ncu.parse(RAW)
    assert [(row.index, row.kernel) for row in rows][:3] == [
        (0, "gemv_kernel"),
        (1, "split_kv_kernel"),
        (1, "merge_kernel"),
    ]
    assert rows[0].metrics["dram__bytes_read.sum"] == 117_459_200
    assert rows[0].metrics["gpu__time_duration.sum"] == pytest.approx(42.368e-6)
    assert rows[0].metrics[ncu.OCCUPANCY] == pytest.approx(0.3127)
    assert "dram__bytes_read.sum" not in rows[3].metrics, "n/a is no number"


def test_units_are_read_from_the_row_under_the_names() -> None:
    names = '"ID","Process ID","t:Push/Pop_Range:x","Kernel Name","dram__bytes_read.sum","gpu__time_duration.sum"'
    row = '"0","7","7  ""<default domain>:decodebench-3:none"" ","k","1,234.50","17.00"'
    for byte, time, scaled in (("Mbyte", "usecond", (1234.5e6, 17e-6)), ("Kbyte", "ms", (1234.5e3, 17e-3))):
        (parsed,) = ncu.parse(f'{names}\n"","","","","{byte}","{time}"\n{row}\n')
        assert tuple(parsed.metrics.values()) == pytest.approx(scaled)
        assert parsed.index == 3
    with pytest.raises(ValueError, match="'furlong'"):
        ncu.parse(f'{names}\n"","","","","furlong","s"\n{row}\n')


def test_kernels_outside_our_ranges_and_empty_outputs_give_nothing() -> None:
    assert ncu.parse("") == []
    assert ncu.parse("==WARNING== No kernels were profiled.\n") == []
    assert ncu.parse(RAW.replace("decodebench-", "other-")) == []
    assert ncu.parse("\n".join(RAW.splitlines()[:4])) == []


def test_a_launch_of_two_kernels_is_summed() -> None:
    rows = [row for row in ncu.parse(RAW) if row.index == 1]
    found = counters.summarise(rows, {**ENTRY, "op": "attention_decode", "declared_read": 268_435_456})
    assert found.dram_read == 268_500_992 + 1_052_672
    assert found.dram_written == 1_048_576 + 32_768
    assert found.seconds == pytest.approx(100e-6)
    assert found.l2_hit_rate == pytest.approx(420_000 / (420_000 + 8_436_000))
    assert found.occupancy == pytest.approx((0.125 * 96 + 0.25 * 4) / 100), "weighted by time"
    assert found.ffma == 1_048_576 + 131_072
    assert found.fma_flops == 2 * (1_048_576 + 131_072) + 2_097_152 + 65_536 + 4_194_304 + 65_536
    assert found.tensor_ops == {"bf16": 2_147_483_648, "fp8": 0}
    executed, moved = found.fma_flops + 2_147_483_648, found.dram_read + found.dram_written
    assert found.intensity == pytest.approx(executed / moved)
    assert found.kernels == ("split_kv_kernel", "merge_kernel")
    json.dumps(found.as_dict())
    assert "read 269.6 MB (declared 268.4, +0.4%)" in found.line()


def test_a_counter_missing_in_one_kernel_is_missing_in_the_sum() -> None:
    rows = [row for row in ncu.parse(RAW) if row.index == 2]
    found = counters.summarise(rows, ENTRY)
    assert found.dram_read is None
    assert found.intensity is None
    assert found.dram_written == 4096


@pytest.mark.parametrize(
    ("missing", "unknown"),
    [
        ("dram_read", {"dram_read", "intensity"}),
        ("dram_written", {"dram_written", "intensity"}),
        ("l2_hits", {"l2_hit_rate"}),
        ("l2_misses", {"l2_hit_rate"}),
        ("ffma", {"ffma", "fma_flops", "intensity"}),
        ("fadd", {"fma_flops", "intensity"}),
        ("fmul", {"fma_flops", "intensity"}),
        ("seconds", {"seconds", "occupancy"}),
        ("occupancy", {"occupancy"}),
    ],
)
def test_what_hangs_on_a_missing_counter_is_unknown_and_nothing_else(missing: str, unknown: set[str]) -> None:
    first, second = (row for row in ncu.parse(RAW) if row.index == 1)
    metric = SUMS.get(missing, ncu.OCCUPANCY)
    second.metrics.pop(metric)
    found = counters.summarise([first, second], ENTRY)
    assert {name for name, value in found.as_dict().items() if value is None} == unknown
    if missing == "dram_written":
        assert "wrote ? MB (declared 0.0), L2 hits 5%, ? FLOP/B" in found.line()
    if missing == "l2_hits":
        assert "L2 hits ?, " in found.line()
        assert "? FLOP/B" not in found.line()


# ---- what real machines printed


def offered(name: str) -> set[str]:
    return ncu.offered((DATA / name).read_text())


def short(metrics: list[str]) -> list[str]:
    return [metric.removeprefix("sm__ops_path_tensor_").removesuffix(".sum") for metric in metrics]


def test_the_whole_of_a_tensor_counter_is_preferred_to_its_parts() -> None:
    h100, ga104 = offered("ncu_query_metrics_h100.txt"), offered("ncu_query_metrics_ga104.txt")
    assert len([name for name in h100 if name.startswith("sm__ops_path_tensor")]) == 39
    assert short(ncu.tensor_metrics(h100)) == [
        *("src_bf16_dst_fp32", "src_fp16", "src_fp8", "src_int8", "src_tf32_dst_fp32"),
    ]
    assert short(ncu.tensor_metrics(ga104)) == [
        *("src_bf16_dst_fp32", "src_fp16_dst_fp16", "src_fp16_dst_fp32", "src_int8", "src_tf32_dst_fp32"),
    ]
    only_parts = {f"sm__ops_path_tensor_src_fp8_dst_fp32_sparsity_{sparsity}" for sparsity in ("on", "off")}
    by_instruction = {"sm__ops_path_tensor_op_utcqmma_src_fp4_fp6_fp8_dst_fp32"}
    assert ncu.tensor_metrics(only_parts | by_instruction) == sorted(
        f"{name}.sum" for name in only_parts | by_instruction
    )


def test_only_what_is_offered_is_asked_for() -> None:
    h100 = offered("ncu_query_metrics_h100.txt")
    fixed = [*SUMS.values(), ncu.OCCUPANCY]
    assert ncu.metrics_to_ask(h100) == [*fixed, *ncu.tensor_metrics(h100)], "H100 offers every one"
    without = h100 - {"lts__t_sectors_lookup_miss"}
    assert set(ncu.metrics_to_ask(h100)) - set(ncu.metrics_to_ask(without)) == {SUMS["l2_misses"]}
    renamed = h100 - {"dram__bytes_read"} | {"dram__bytes_op_read"}
    asked = ncu.metrics_to_ask(renamed)
    assert "dram__bytes_op_read.sum" in asked
    assert "dram__bytes_read.sum" not in asked
    assert ncu.metrics_to_ask(set()) == fixed, "the query failed"


def test_a_recorded_raw_page_is_read_past_its_words_and_other_units() -> None:
    """Columns that nobody asked for hold `No-CC` and `SIMT`, and registers by thread."""
    text = (DATA / "ncu_raw_b200.csv").read_text()
    assert ncu.parse(text) == [], "it was recorded without NVTX ranges"
    marked = []
    for line in text.splitlines():
        cells = line.split(',"')
        if line.startswith('"ID"'):
            cells.insert(4, 'thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"')
        elif line.startswith('"'):
            index = cells[0].strip('"')
            mark = f'7  ""<default domain>:{ncu.MARK}{index}:none:none:none:none:none:none"" ' if index else ""
            cells.insert(4, f'{mark}"')
        marked.append(',"'.join(cells))
    merge, decode = ncu.parse("\n".join(marked))
    assert (merge.index, decode.index) == (0, 1)
    assert merge.kernel.startswith("void PersistentVariableLengthMergeStatesKernel<8, 16, 8, 4, __nv_bfloat16")
    assert merge.metrics == {"gpu__time_duration.sum": pytest.approx(9.92e-6)}
    assert decode.metrics == {"gpu__time_duration.sum": pytest.approx(23.872e-6)}


def long_form(name: str) -> list[Row]:
    """The kernels of a recorded long page: one line per metric, with the same names, units and numbers."""
    lines = (DATA / name).read_text().splitlines()
    table = csv.DictReader(line for line in lines if line.startswith('"'))
    rows: dict[str, Row] = {}
    for line in table:
        row = rows.setdefault(line["ID"], Row(index=int(line["ID"]), kernel=line["Kernel Name"], metrics={}))
        metric = ncu.RENAMED.get(line["Metric Name"], line["Metric Name"])
        if metric in ncu.READ or ncu.TENSOR.fullmatch(metric.removesuffix(".sum")):
            value = ncu.number(metric, line["Metric Unit"], line["Metric Value"])
            if value is not None:
                row.metrics[metric] = value
    return list(rows.values())


def test_recorded_numbers_in_every_unit() -> None:
    norm, matmul = long_form("ncu_details_h200_bytes.csv")
    assert norm.metrics == pytest.approx(
        {SUMS["dram_read"]: 147_460, SUMS["dram_written"]: 0, SUMS["seconds"]: 3.78e-6, ncu.OCCUPANCY: 0.1157}
    )
    assert matmul.metrics == pytest.approx(
        {SUMS["dram_read"]: 21_120_000, SUMS["dram_written"]: 0, SUMS["seconds"]: 10.21e-6, ncu.OCCUPANCY: 0.1422}
    )
    both = counters.summarise([norm, matmul], ENTRY)
    assert both.dram_read == pytest.approx(21_267_460)
    assert both.occupancy == pytest.approx((0.1157 * 3.78 + 0.1422 * 10.21) / 13.99)
    assert (both.intensity, both.tensor_ops) == (None, None)


def test_a_geforce_names_its_dram_counters_otherwise_and_separates_thousands() -> None:
    """SAXPY of 2^24 elements reads x and y, 134 217 728 bytes, and writes y, of which some stays in the L2."""
    (saxpy,) = long_form("ncu_details_rtx5070.csv")
    assert saxpy.metrics == pytest.approx(
        {
            SUMS["dram_read"]: 134_221_568,
            SUMS["dram_written"]: 43_631_104,
            SUMS["seconds"]: 292.928e-6,
            ncu.OCCUPANCY: 0.8382,
        }
    )
    names = '"ID","t:Push/Pop_Range:x","Kernel Name","dram__bytes_op_read.sum"'
    row = '"0","7  ""<default domain>:decodebench-0:none"" ","saxpy_kernel","134,221,568"'
    (parsed,) = ncu.parse(f'{names}\n"","","","byte"\n{row}\n')
    assert parsed.metrics == {SUMS["dram_read"]: 134_221_568}


def test_the_recorded_operations_of_a_matmul_are_those_of_its_shape() -> None:
    """32 tokens through a projection of 2048 to 5120: 2·32·2048·5120 operations, on the tensor cores alone."""
    norm, matmul = (counters.summarise([row], ENTRY) for row in long_form("ncu_details_h200_ops.csv"))
    assert matmul.tensor_ops == {"bf16": 2 * 32 * 2048 * 5120, "fp16": 0}
    assert matmul.fma_flops == 0
    assert norm.tensor_ops == {"bf16": 0, "fp16": 0}
    assert norm.fma_flops == 2 * 73_728 + 111_616 + 131_072
    assert norm.seconds == pytest.approx(3.42e-6)


def test_not_available_is_no_number() -> None:
    lines = (DATA / "ncu_details_cc75.csv").read_text().splitlines()
    table = list(csv.DictReader(line for line in lines if line.startswith('"')))
    cells = [(line["Metric Name"], line["Metric Unit"], line["Metric Value"]) for line in table]
    assert [ncu.number(*cell) for cell in cells] == [pytest.approx(0.344), None, None]
    assert [ncu.number("x", "furlong", words) for words in ("no data", "nan", "")] == [None, None, None]


@pytest.mark.parametrize(
    ("recorded", "status", "said"),
    [
        ("ncu_denied.txt", 1, ncu.DENIED),
        (
            "ncu_incompatible.txt",
            11,
            "ncu ended with 11; An error was reported by the driver: "
            "Cuda driver is not compatible with Nsight Compute.",
        ),
        (
            "ncu_unknown_metric.txt",
            1,
            "ncu ended with 1; Failed to find metric "
            r"regex:^flop_count_sp\.(sum|min|max|avg|pct|ratio|max_rate)$",
        ),
        ("ncu_no_kernels.csv", 0, "ncu ended with 0; No kernels were profiled."),
    ],
)
def test_recorded_refusals_are_told_with_their_cause(recorded: str, status: int, said: str) -> None:
    text = (DATA / recorded).read_text()
    assert ncu.parse(text) == []
    assert ncu.complaint(text, status) == said
    assert ncu.complaint(f"{text}\ndied of it\n", status).endswith(ncu.DENIED if said == ncu.DENIED else "; died of it")


# ---- before anything runs


@pytest.mark.parametrize(
    ("program", "parameters", "admin", "words"),
    [
        (None, {}, True, "install Nsight Compute"),
        ("/bin/ncu", {"RmProfilingAdminOnly": "1"}, False, "NVreg_RestrictProfilingToAdminUsers=0"),
        ("/bin/ncu", {"RmProfilingAdminOnly": "1"}, True, None),
        ("/bin/ncu", {"RmProfilingAdminOnly": "0"}, False, None),
        ("/bin/ncu", {}, False, None),
    ],
)
def test_what_can_be_known_beforehand(program: str | None, parameters: dict, admin: bool, words: str | None) -> None:
    problem = ncu.counters_problem(program, parameters, admin)
    assert problem is None if words is None else words in (problem or "")


def test_capability_is_read_from_the_kernel(tmp_path: Path) -> None:
    status = tmp_path / "status"
    for mask, expected in (("000001ffffffffff", True), ("00000000a80425fb", False)):
        status.write_text(f"Name:\tpython\nCapPrm:\t0\nCapEff:\t{mask}\n")
        assert machine.may_administrate(status) is expected
    assert machine.may_administrate(tmp_path / "none") is False
