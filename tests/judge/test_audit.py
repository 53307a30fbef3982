"""Audit: which rows of a table can't be true, and why. Tables are made from the roof, or hold published rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench.cli import app, main
from bench.devices import DEVICES
from bench.errors import BadRequest
from bench.judge.audit import audit
from bench.judge.audit.columns import find
from bench.judge.audit.work import of_attention, of_gemm, of_mla, of_moe
from kernels.op import discover

H100, H200 = DEVICES["h100-sxm"], DEVICES["h200"]


def attention(share: float, part=H100, *, kv: float = 1.0, batches=(1, 4, 16, 64, 128), launch: float = 4e-6):
    """Decode attention of Llama-3-70B's heads over 4,096 tokens, at this share of the part's bandwidth."""
    rows = [(B, T) for B in batches for T in (512, 4096, 32768)]
    found = pd.DataFrame(rows, columns=["batch_size", "seq_len"]).assign(num_heads=64, num_kv_heads=8, head_dim=128)
    kv_bytes = 2 * found["batch_size"] * found["seq_len"] * 8 * 128 * 2
    found["latency_us"] = (kv * kv_bytes / part.memory_bandwidth.value / share + launch) * 1e6
    return found


def gemm(share: float, part=H100):
    shapes = [(m, n, k) for m in (1, 8, 32) for n, k in ((28672, 8192), (8192, 28672), (16384, 16384))]
    found = pd.DataFrame(shapes, columns=["m", "n", "k"])
    size = 2 * (found["n"] * found["k"] + found["m"] * (found["n"] + found["k"]))
    return found.assign(latency_ms=(size / part.memory_bandwidth.value / share + 4e-6) * 1e3)


def saved(path: Path, table: pd.DataFrame) -> Path:
    table.to_csv(path / "table.csv", index=False)
    return path / "table.csv"


@pytest.mark.parametrize("table", [attention(0.9), gemm(0.9), attention(0.4)], ids=["attention", "gemm", "slow"])
def test_nothing_is_found_in_a_sound_table(table: pd.DataFrame, tmp_path: Path):
    found = audit(saved(tmp_path, table), part="h100-sxm")
    assert found.verdict == "sound"
    assert found.exit_code == 0
    assert found.impossible.empty
    assert found.unusable.empty
    assert found.notes == ()
    assert 0.35 < found.rows["share"].max() < 0.92


def test_k_without_v_is_found_by_the_rows_that_no_l2_can_hold(tmp_path: Path):
    """As in TensorRT-LLM's tables (aiconfigurator#1379): time for K alone, at 0.85 of the bandwidth."""
    found = audit(saved(tmp_path, attention(0.85, kv=0.5)), part="h100-sxm")
    assert found.verdict == "half the bytes"
    assert set(found.impossible["reason"]) == {"half the bytes"}
    assert len(found.impossible) > 5


def test_published_rows_of_a_k_only_table(tmp_path: Path):
    """Rows of aiconfigurator's A100 table of TensorRT-LLM 1.0.0 (Apache-2.0), with its own columns; latency has no
    unit in its name. K and V are 2.15 to 4.30 GB, which the A100 reads in 1.05 to 2.11 ms."""
    rows = [
        (64, 16, 8, 16383, 1.243136),
        (128, 8, 4, 16383, 1.248085),
        (64, 32, 8, 8191, 0.639317),
        (64, 40, 40, 31, 0.061781),
        (32, 64, 64, 1, 0.037376),
    ]
    table = pd.DataFrame(rows, columns=["batch_size", "num_heads", "num_key_value_heads", "step", "latency"])
    table = table.assign(isl=1, device="NVIDIA A100-SXM4-80GB", head_dim=128, op_name="generation_attention")
    found = audit(saved(tmp_path, table))
    assert found.verdict == "half the bytes"
    assert any("ms fits the shapes best" in note for note in found.notes)
    assert list(found.rows["impossible"]) == [True, True, True, False, False]


def test_gemms_that_fit_the_l2_are_warm(tmp_path: Path):
    """RTX 5090, vllm#34424: 50 MB of weights in 96 MB of L2, 1.15 to 1.87 of the roof."""
    rows = [(1, "bf16", 3.34285), (1, "fp8", 4.128756), (16, "bf16", 40.915532)]
    table = pd.DataFrame(rows, columns=["batch_size", "dtype", "TFLOP/s"]).assign(N=6144, K=4096, gpu="RTX 5090")
    found = audit(saved(tmp_path, table))
    assert found.verdict == "warm"
    assert list(found.rows["reason"]) == ["warm"] * 3
    assert found.rows["share"].round(2).tolist() == [1.87, 1.15, 1.44]


@pytest.mark.parametrize("table", [attention(0.92, H200), gemm(0.92, H200)], ids=["attention", "gemm"])
@pytest.mark.parametrize("named", [True, False])
def test_rows_of_an_h200_against_an_h100(table: pd.DataFrame, named: bool, tmp_path: Path):
    if named:
        table = table.assign(device="NVIDIA H200")
    found = audit(saved(tmp_path, table), part="h100-sxm")
    assert found.verdict == "wrong part"
    assert "h200" in found.notes[0].lower()
    assert set(found.impossible["reason"]) == {"wrong part"}


def test_shares_that_a_table_claims_of_another_parts_bandwidth(tmp_path: Path):
    table = gemm(0.85, H200).assign(gpu="H200")
    size = 2 * (table["n"] * table["k"] + table["m"] * (table["n"] + table["k"]))
    table["% of peak"] = 100 * size / table["latency_ms"] * 1e3 / H100.memory_bandwidth.value
    found = audit(saved(tmp_path, table))
    assert found.verdict == "wrong part"
    assert "3.35 TB/s" in found.notes[0]
    assert found.impossible.empty


def test_milliseconds_taken_for_microseconds(tmp_path: Path):
    table = attention(0.8)
    table["latency_us"] /= 1e3
    found = audit(saved(tmp_path, table), part="h100-sxm")
    assert found.verdict == "milliseconds for microseconds"
    table["latency_us"] *= 1e6
    assert audit(saved(tmp_path, table), part="h100-sxm").verdict == "microseconds for milliseconds"


def test_gb_for_gib(tmp_path: Path):
    rows = pd.DataFrame({"op": "read", "size_mib": [4096, 8192], "time_us": [1366, 2730]})
    rate = rows["size_mib"] * 2**20 / rows["time_us"] * 1e6 / 1e9
    assert audit(saved(tmp_path, rows.assign(bandwidth_gb_s=rate)), part="h100-sxm").verdict == "sound"
    found = audit(saved(tmp_path, rows.assign(bandwidth_gb_s=rate * 2**30 / 1e9)), part="h100-sxm")
    assert found.verdict == "GB for GiB"
    bare = pd.DataFrame({"kernel": ["read", "read"], "bandwidth_gb_s": [3420, 3490]})
    assert audit(saved(tmp_path, bare), part="h100-sxm").verdict == "GB for GiB"


def test_a_sparse_peak(tmp_path: Path):
    table = pd.DataFrame({"m": [8192], "n": [8192], "k": [8192], "dtype": ["bf16"], "tflops": [1500.0]})
    found = audit(saved(tmp_path, table), part="h100-sxm")
    assert list(found.rows["reason"]) == ["sparse peak"]


def test_fewer_experts_than_routing_hits(tmp_path: Path):
    shape = {"num_experts": 256, "topk": 8, "hidden_size": 7168, "inter_size": 2048, "moe_dtype": "bfloat16"}
    table = pd.DataFrame({"num_tokens": [64], "latency_ms": [4.0], **shape})
    assert list(audit(saved(tmp_path, table), part="h100-sxm").rows["reason"]) == ["fewer experts"]
    skewed = table.assign(distribution="power_law_1.2")
    assert audit(saved(tmp_path, skewed), part="h100-sxm").verdict == "sound"


def test_all_formats_of_files_say_the_same(tmp_path: Path):
    pytest.importorskip("pyarrow")
    table = gemm(0.9).assign(dtype="bf16")
    paths = {name: tmp_path / f"table.{name}" for name in ("csv", "json", "jsonl", "parquet", "nested")}
    table.to_csv(paths["csv"], index=False)
    table.to_json(paths["json"], orient="records")
    table.to_json(paths["jsonl"], orient="records", lines=True)
    table.to_parquet(paths["parquet"])
    paths["nested"].write_text(json.dumps({"gpu": "NVIDIA H100 80GB HBM3", "results": table.to_dict("records")}))
    shares = [audit(path, part="h100-sxm").rows["share"].to_numpy() for path in paths.values()]
    assert all(np.allclose(share, shares[0]) for share in shares)
    assert (audit(paths["nested"]).rows["part"] == "h100-sxm").all()


def test_a_table_in_long_form_with_settings_in_a_text(tmp_path: Path):
    rows = [("h100-sxm", "M=1 N=12288 K=5376 weights=bf16", "TFLOP_s", 2.87), ("h100-sxm", "batch=1", "tok_s", 10.0)]
    table = pd.DataFrame(rows, columns=["device", "setting", "metric", "value"])
    found = audit(saved(tmp_path, table))
    assert found.rows["share"].round(2).tolist() == [0.86]
    assert list(found.unusable) == ["the metric is neither a time nor a rate"]


@pytest.mark.parametrize(
    "content",
    [
        "m;n;k;latency_us\n1;8192;8192;41,200\n4;8192;8192;45,0\n",
        'm,n,k,latency_ms\n1,"8,192","8,192","0,0412"\n4,"8,192","8,192","0,045"\n',
        "m,n,k,latency_us,\n1,8192,8192,41.2,\n4,8192,8192,45.0,\n",
        "# by hand\nm\tn\tk\tlatency_us\n1\t8192\t8192\t41.2\n4\t8192\t8192\t45.0\n",
        "sep=;\nm;n;k;latency_us\n1;8192;8192;41.2\n4;8192;8192;45\n",
    ],
    ids=["decimal commas", "thousands", "commas at the end", "comment", "Excel"],
)
def test_numbers_are_read_as_people_write_them(content: str, tmp_path: Path):
    path = tmp_path / "table"
    for encoding in ("utf-8", "utf-16"):
        path.write_text(content, encoding=encoding)
        found = audit(path, part="h100-sxm")
        assert found.rows["share"].round(3).tolist() == [0.973, 0.891]
        assert sum("commas are read as" in note for note in found.notes) == (3 if '"' in content else 0)


def test_a_unit_in_latin_1(tmp_path: Path):
    path = tmp_path / "table"
    path.write_bytes("m,n,k,latency (µs)\n1,8192,8192,41.2\n".encode("latin-1"))
    assert audit(path, part="h100-sxm").rows["share"].round(3).tolist() == [0.973]


def test_shapes_that_cannot_be_are_told(tmp_path: Path):
    shape = {"num_tokens": [1, 1, 1.5], "num_experts": 8, "topk": [2, 9, 2], "hidden_size": 4096, "inter_size": 14336}
    found = audit(saved(tmp_path, pd.DataFrame(shape).assign(latency_us=300)), part="h100-sxm")
    assert found.unusable.to_dict() == {
        2: "topk is more than the experts",
        3: "the shape has m that is no whole number",
    }


def test_a_rate_without_a_unit_is_asked_for(tmp_path: Path):
    """3000 may be GB/s or MB/s: in bytes a second each table would be sound."""
    path = saved(tmp_path, pd.DataFrame({"name": ["copy"], "bandwidth": [3900]}))
    with pytest.raises(BadRequest, match=r"has no unit.* rate=bandwidth:gb/s"):
        audit(path, part="h100-sxm")
    assert audit(path, part="h100-sxm", mapping=["rate=bandwidth:gb/s"]).exit_code == 1


def test_columns_are_found_by_many_names():
    names = [
        "Batch Size",
        "Num KV Heads",
        "nheads",
        "Head Dim",
        "seqlen_k",
        "Time (µs)",
        "achieved GB/s",
        "GPU",
        "kv cache dtype",
    ]
    found = {role: (column.source, column.scale) for role, column in find(names).items()}
    assert found["time"] == ("Time (µs)", 1e-6)
    assert found["rate"] == ("achieved GB/s", 1e9)
    assert {
        role: found[role][0] for role in ("batch", "heads", "kv_heads", "head_dim", "context", "part", "kv_dtype")
    } == {
        "batch": "Batch Size",
        "heads": "nheads",
        "kv_heads": "Num KV Heads",
        "head_dim": "Head Dim",
        "context": "seqlen_k",
        "part": "GPU",
        "kv_dtype": "kv cache dtype",
    }


def test_a_mapping_names_columns_units_and_constants(tmp_path: Path):
    table = gemm(0.9).rename(columns={"m": "zeilen", "latency_ms": "dauer"})
    found = audit(saved(tmp_path, table), part="h100-sxm", mapping=["m=zeilen", "time=dauer:ms", "dtype=bf16"])
    assert found.verdict == "sound"
    assert found.columns["dtype"] == "bf16 (given)"
    with pytest.raises(BadRequest, match="no column 'nichts'"):
        audit(saved(tmp_path, table), part="h100-sxm", mapping=["time=nichts"])
    with pytest.raises(BadRequest, match="unknown role"):
        audit(saved(tmp_path, table), part="h100-sxm", mapping=["farbe=dauer"])


@pytest.mark.parametrize(
    ("op", "maker", "rows", "cases"),
    [
        (
            "ffn_gemv",
            of_gemm,
            {"m": [1, 64], "n": [4096, 96], "k": [8192, 512], "dtype": ["int4_wo", "fp8_block"]},
            [
                {"B": 1, "N": 4096, "K": 8192, "weights": "int4"},
                {"B": 64, "N": 96, "K": 512, "weights": "fp8_block", "activations": "fp8"},
            ],
        ),
        (
            "attention_decode",
            of_attention,
            {
                "batch": [3, 5],
                "heads": [32, 8],
                "kv_heads": [8, 0],
                "head_dim": [128, 64],
                "context": [1000, 70],
                "window": [0, 33],
            },
            [
                {"B": 3, "H_q": 32, "H_kv": 8, "D": 128, "T": 1000},
                {"B": 5, "H_q": 8, "H_kv": 8, "D": 64, "T": 70, "window": 33},
            ],
        ),
        ("mla_decode", of_mla, {"batch": [7], "heads": [16], "context": [333]}, [{"B": 7, "H": 16, "T": 333}]),
        (
            "moe_ffn",
            of_moe,
            {"m": [5], "experts": [8], "topk": [8], "hidden": [256], "ffn": [128], "dtype": ["fp8_block"]},
            [{"B": 5, "E": 8, "k": 8, "H": 256, "F": 128, "weights": "fp8_block"}],
        ),
    ],
)
def test_whole_tables_agree_with_the_operations_case_by_case(op, maker, rows, cases):
    found = maker(pd.DataFrame(rows))
    for row, case in zip(found.itertuples(), cases, strict=True):
        work = discover()[op].work(discover()[op].case_from_dict(case))
        assert row.flops == work.total_flops
        assert row.bytes == pytest.approx(work.bytes, rel=5e-3)


def test_a_large_table_takes_seconds(tmp_path: Path):
    rng = np.random.default_rng(0)
    count = 50_000
    table = pd.DataFrame({"m": rng.integers(1, 512, count), "n": 1024 * rng.integers(1, 32, count)})
    table = table.assign(k=1024 * rng.integers(1, 16, count), latency_us=1000.0)
    found = audit(saved(tmp_path, table), part="h100-sxm")
    assert len(found.rows) == count


BAD = {
    "empty": b"",
    "binary": b"\x00\x01\x02\x03",
    "torn json": b'[{"m": 1, "n": 2',
    "torn parquet": b"PAR1 and no more",
    "no times": b"m,n,k\n1,2,3\n",
    "no rows": b"m,n,k,time_us\n",
    "no shape": b"colour,time_us\nred,3\n",
    "all negative": b"m,n,k,time_us\n1,8192,8192,-3\n1,8192,8192,nan\n",
    "a number": b"17",
    "ragged": b"m,n,k,time_us\n1,2,3,4\n1,2,3,4,5,6\n",
    "one value more": b"m,n,k,time_us\n1,2,3,4,5\n",
}


@pytest.mark.parametrize("content", BAD.values(), ids=list(BAD))
def test_bad_files_get_one_line(content: bytes, tmp_path: Path):
    path = tmp_path / "table"
    path.write_bytes(content)
    with pytest.raises(BadRequest) as caught:
        audit(path, part="h100-sxm")
    assert "\n" not in str(caught.value)


def test_rows_with_damaged_times_are_counted_and_the_others_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    table = gemm(0.9)
    table.loc[2, "latency_ms"] = float("nan")
    table.loc[3, "latency_ms"] = -1.0
    table.loc[4, "latency_ms"] = float("inf")
    arguments = ["decodebench", "audit", str(saved(tmp_path, table)), "--part", "h100-sxm", "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    said = json.loads(printed.out)
    assert said["judged"] == len(table) - 3
    assert sum(said["unusable"].values()) == 3
    assert len(printed.err.strip().splitlines()) == 1
    assert "3 rows were left out" in printed.err


def test_the_command_prints_each_row_and_the_verdict(tmp_path: Path):
    path = saved(tmp_path, attention(0.85, kv=0.5))
    done = CliRunner().invoke(app, ["audit", str(path), "--part", "h100-sxm"])
    assert done.exit_code == 1
    assert done.stdout.startswith("NOT SOUND")
    rows = json.loads(CliRunner().invoke(app, ["audit", str(path), "--part", "h100-sxm", "--json"]).stdout)["rows"]
    assert len(rows) == 15
    assert {row["row"] for row in rows if row["impossible"]} <= set(range(1, 16))
    with pytest.raises(BadRequest, match="unknown device"):
        audit(path, part="h1000")
    with pytest.raises(BadRequest, match="names no part"):
        audit(path)
