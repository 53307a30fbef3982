"""The committed table: what it holds, its floors beside those of our operations, and how it is made again."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.devices import DEVICES
from bench.errors import BadRequest
from bench.judge import published
from bench.judge.published import aiconfigurator, command, link_fit, wheel
from bench.judge.published.aiconfigurator import Sheet
from bench.judge.published.cases import MAPPED
from bench.judge.published.distill import lot, size_class
from bench.judge.published.table import CODED, FILE, Table, joined, read, save
from kernels.all_to_all.op import from_others
from kernels.models import MODELS
from kernels.op import discover


def test_the_committed_table_is_small_and_holds_what_it_says() -> None:
    table = published.load()
    assert FILE.stat().st_size <= 3_000_000
    assert len(table) > 300_000
    assert set(table.present("part")) <= DEVICES.keys()
    assert {"attention_decode", "ffn_gemv", "mla_decode", "moe_ffn", "all_reduce"} <= set(table.present("op"))
    assert np.isfinite(table["seconds"]).all()
    assert (table["seconds"] > 0).all()
    assert (published.work(table).bytes > 0).all()
    assert table.sources["version"] == wheel.PINNED
    assert (FILE.parent / "NOTICE").read_text().count("Apache License") == 1
    assert sum(table.left_out.values()) > 1_000_000


EXCHANGES = ("dispatch", "combine")


@pytest.mark.parametrize("op", EXCHANGES)
def test_floors_of_exchanges_are_what_our_draws_send(op: str) -> None:
    """Rows that a rank gets from others. Ours are drawn, so a rank may get some more; large cases are asked."""
    rows = published.load().where(op=op, stored="bf16")
    rows = rows.take(np.flatnonzero((rows["B"] == 128) & (rows["E"] == 256)))
    floor = published.work(rows).bytes
    assert len(rows) >= 10
    for row in range(len(rows)):
        found = published.case_of(rows, row)
        assert found
        name, case = found
        assert (name, case.direction) == ("all_to_all", op)  # type: ignore[attr-defined]
        mean = np.mean([from_others(case, r) for r in range(case.ranks)]) * case.row_bytes  # type: ignore[attr-defined]
        assert floor[row] == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize("op", [op for op in MAPPED if op not in EXCHANGES])
def test_floors_are_those_of_our_own_operations(op: str) -> None:
    """Ours alone count scales of rows, page tables and lengths, tokens of a state update, and the rotary key of an fp8
    latent in 16 bits. So large cases are asked."""
    rows = published.load().where(op=op)
    rows = rows.take(np.flatnonzero((published.work(rows).bytes > 30e6) & ((rows["balanced"] > 0) | (op != "moe_ffn"))))
    rows = rows.take(np.random.default_rng(0).choice(len(rows), 120, replace=False))
    floor, seen = published.work(rows), 0
    for row in range(len(rows)):
        found = published.case_of(rows, row)
        if found is None:
            continue
        name, case = found
        work = discover()[name].work(case)
        size = work.bytes_written if op == "all_reduce" else work.bytes  # what crosses the link
        if op == "moe_ffn":  # balanced tokens hit all experts that they can; ours are drawn
            share = min(case.E, case.B * case.k) / (case.E * (1 - (1 - case.k / case.E) ** case.B))  # type: ignore[attr-defined]
            assert floor.bytes[row] == pytest.approx(size * share, rel=0.25)
        else:
            narrow = rows.names["stored"][rows["stored"][row]] not in ("bf16", "fp32")
            assert floor.bytes[row] == pytest.approx(size, rel=0.13 if narrow else 0.03)
        if name not in ("state_update", "all_reduce"):
            assert floor.flops[row] == pytest.approx(work.total_flops, rel=0.001)
        seen += 1
    assert seen >= 40


def test_rows_that_are_no_case_of_ours_say_so() -> None:
    table = published.load()
    assert published.case_of(table.where(op="ffn_gemv", stored="nvfp4"), 0) is None
    assert published.case_of(table.where(op="ffn_gemv", stored="int8", activations="int8"), 0) is None
    assert published.case_of(table.where(op="dispatch", stored="fp8"), 0) is None


def test_rows_are_found_by_name() -> None:
    table = published.load()
    rows = table.where(op="attention_decode", part=["h100-sxm", "h200"], stored="bf16", D=128)
    assert set(rows.text("part")) == {"h100-sxm", "h200"}
    assert set(rows["D"]) == {128}
    frame = rows.take(np.arange(5)).frame()
    assert set(CODED) - {"model"} <= set(frame.columns)
    assert frame.part.tolist() == rows.text("part")[:5].tolist()
    with pytest.raises(BadRequest, match="did you mean h100-sxm"):
        table.where(part="h100")
    with pytest.raises(BadRequest, match="unknown column"):
        table.where(color="red")


def test_a_known_row_is_as_it_was_published() -> None:
    """vLLM 0.24, one product of a B200: the first row of its table that this project keeps, read by hand."""
    rows = published.load().where(op="attention_decode", part="h100-sxm", software="vllm", stored="bf16", window=0)
    rows = rows.where(H_q=32, H_kv=8, D=128, T=4096)
    share = published.work(rows).bytes / rows["seconds"] / 3.35e12
    assert [round(float(share[rows["B"] == B][0]), 2) for B in (1, 8, 32, 128)] == [0.30, 0.69, 0.86, 0.93]


def test_a_case_is_kept_for_every_part_or_for_none() -> None:
    one = {name: np.array([3]) for name in ("B", "N", "K")}
    a = Table(columns=one | {"part": np.array([0])}, names={"part": ("a", "b")})
    b = Table(columns=one | {"part": np.array([1])}, names={"part": ("a", "b")})
    assert lot(a) == lot(b)
    many = Table(columns={"B": np.arange(1, 100_001), "N": np.full(100_000, 4096)}, names={})
    assert np.histogram(lot(many), bins=10, range=(0, 1))[0] == pytest.approx(np.full(10, 10_000), rel=0.05)
    assert size_class(np.array([1e5, 1e7, 5e9])).tolist() == [0, 2, 6]


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = published.load().take(np.arange(0, 300_000, 3000))
    save(tmp_path / "a.xz", {"kernels": rows})
    again = read(tmp_path / "a.xz")["kernels"]
    save(tmp_path / "b.xz", {"kernels": again})
    assert (tmp_path / "a.xz").read_bytes() == (tmp_path / "b.xz").read_bytes()
    for name, values in rows.columns.items():
        assert again[name] == pytest.approx(values, rel=1e-9), name
    assert again.text("kernel").tolist() == rows.text("kernel").tolist()
    for damage in (b"", b"nonsense", (tmp_path / "a.xz").read_bytes()[:-50]):
        (tmp_path / "c.xz").write_bytes(damage)
        with pytest.raises(BadRequest, match="holds no table"):
            read(tmp_path / "c.xz")


def test_tables_join_under_new_codes() -> None:
    a = Table(columns={"op": np.array([0, 1]), "B": np.array([1, 2])}, names={"op": ("x", "z")}, left_out={"no": 1})
    b = Table(columns={"op": np.array([0])}, names={"op": ("y",)}, left_out={"no": 2})
    both = joined([a, b])
    assert both.text("op").tolist() == ["x", "z", "y"]
    assert both["B"].tolist() == [1, 2, 0]
    assert both.left_out == {"no": 3}


def small_wheel(path: Path, **tables: dict[str, list[object]]) -> Path:
    """A wheel with a table of products and one of prefill, of an H100 and of a part that nobody knows."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"kernel_source": ["k"] * 4, "gemm_dtype": ["bfloat16", "fp8", "bfloat16", "bfloat16"]}
    columns |= {"m": [1, 8, 4096, 2], "n": [4096] * 4, "k": [4096] * 4, "latency": [0.02, 0.01, 1.0, float("nan")]}
    file = path / f"aiconfigurator_core-{wheel.PINNED}-py3-none-any.whl"
    record = []
    with zipfile.ZipFile(file, "w") as archive:
        for name in (
            "h100_sxm/gemm/vllm/1/gemm_perf",
            "who/gemm/vllm/1/gemm_perf",
            "h100_sxm/attention/vllm/1/context_x",
        ):
            sink = pyarrow.BufferOutputStream()
            parquet.write_table(pyarrow.table(columns | tables.get(name, {})), sink)
            inside = f"{wheel.INSIDE}data/{name}.parquet"
            archive.writestr(inside, sink.getvalue().to_pybytes())
            record.append(f"{inside},sha256=x,1")
        sample = (
            "system,silicon_tpot_ms,mode,gemm_quant_mode,moe_quant_mode,precision,model_path,backend,backend_version,"
        )
        sample += "isl,osl,batch_size,tp_size,attention_dp_size,moe_ep_size,decode_batch_size,decode_tp_size,"
        sample += "decode_attention_dp_size,decode_moe_ep_size\n"
        sample += "h100_sxm,10.0,agg,fp8,,fp8,meta-llama/Llama-3.1-70B,vllm,0.1,1024,1024,8,4,1,1,,,,\n"
        archive.writestr(f"{wheel.INSIDE}silicon_sample.csv", sample)
        record.append(f"{wheel.INSIDE}silicon_sample.csv,sha256=y,1")
        archive.writestr(f"aiconfigurator_core-{wheel.PINNED}.dist-info/RECORD", "\n".join(record))
    return file


def test_a_wheel_is_distilled_again_byte_for_byte_and_its_other_rows_are_counted(tmp_path: Path) -> None:
    file = small_wheel(tmp_path)
    said = [command.distill(file, tmp_path / name) for name in ("a.xz", "b.xz")]
    assert said[0]["sha256"] == said[1]["sha256"]
    assert said[0]["rows"] == {"ffn_gemv": 2, "whole servers": 1}
    assert said[0]["left_out"]["a table of prefill"] == 4
    assert said[0]["left_out"]["more than 256 rows of x: not decode"] == 1
    assert said[0]["left_out"]["a time of zero, or none"] == 1
    assert said[0]["left_out"]["a part that `bench/devices` does not know: who"] == 4
    rows = read(tmp_path / "a.xz")["kernels"]
    assert rows["seconds"] == pytest.approx([2e-5, 1e-5])
    assert rows.text("stored").tolist() == ["bf16", "fp8"]
    assert rows.text("activations").tolist() == ["bf16", "fp8"]
    server = read(tmp_path / "a.xz")["servers"]
    assert (server["T"][0], server["tp"][0], server["seconds"][0]) == (1536, 4, pytest.approx(0.01))


def exchanges(part: str, name: str, **columns: Any) -> Sheet:
    """A table of exchanges: 64 tokens of each GPU among 256 experts, 8 for each token."""
    texts = {"kernel_source": "deepep"} | {k: v for k, v in columns.items() if isinstance(v, str)}
    numbers = {"node_num": 1, "hidden_size": 7168, "num_experts": 256, **columns}
    coded = {key: (np.zeros(1, dtype=np.int32), (text,)) for key, text in texts.items()}
    whole = {key: np.array([value]) for key, value in numbers.items() if not isinstance(value, str)}
    return Sheet(part, "engine", "1", name, {**whole, **coded}, 1)


def test_kernels_of_exchanges_go_out_in_8_bits_and_come_back_in_16() -> None:
    """Times are microseconds, of both directions in one row."""
    fields = {"num_token": 64, "num_topk": 8, "dispatch_avg_t_us": 20.0, "combine_avg_t_us": 40.0}
    rows = aiconfigurator.READERS["wideep_deepep_ll_perf"](exchanges("h100_sxm", "wideep_deepep_ll_perf", **fields))
    said = zip(rows.text("op"), rows.text("stored"), rows.text("kernel"), rows["seconds"], rows["tp"], strict=True)
    assert [*said] == [
        ("dispatch", "fp8", "deepep", pytest.approx(20e-6), 8),
        ("combine", "bf16", "deepep", pytest.approx(40e-6), 8),
    ]
    assert [rows[name].tolist() for name in ("B", "k", "E", "H")] == [[64] * 2, [8] * 2, [256] * 2, [7168] * 2]
    for part, changed in (("gb200", {}), ("h100_sxm", {"node_num": 2}), ("h100_sxm", {"num_token": 512})):
        sheet = exchanges(part, "wideep_deepep_ll_perf", **{**fields, **changed})
        assert len(aiconfigurator.READERS[sheet.name](sheet)) == 0
        assert sum(sheet.left_out.values()) == 1


def test_calls_of_exchanges_are_told_from_kernels() -> None:
    said = {"comm_backend": "trtllm_deepep_ll", "comm_dtype": "bfloat16", "phase": "dispatch"}
    fields = {"num_tokens": 64, "topk": 8, "ep_size": 8, "latency": 70.0}
    rows = aiconfigurator.READERS["moe_a2a_perf"](exchanges("h100_sxm", "moe_a2a_perf", **said, **fields))
    assert (rows.text("op")[0], rows.text("kernel")[0], rows["seconds"][0]) == (
        "dispatch",
        "deepep eager",
        pytest.approx(70e-6),
    )
    assert not link_fit.in_graph(rows, "dispatch").any()


def test_a_wheel_that_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_wheel(tmp_path)
    said = command.fetch(tmp_path)
    assert said["package"] == f"aiconfigurator-core {wheel.PINNED}"
    assert len(said["wheel_sha256"]) == 64
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadRequest, match="no pip to download with"):
        command.fetch(tmp_path / "empty")


def test_an_installed_package_is_read_like_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = small_wheel(tmp_path)
    site = tmp_path / "site"
    zipfile.ZipFile(file).extractall(site)
    (site / f"aiconfigurator_core-{wheel.PINNED}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: aiconfigurator-core\nVersion: {wheel.PINNED}\n"
    )
    monkeypatch.syspath_prepend(str(site))
    said = command.fetch(None)
    assert said["package"] == f"aiconfigurator-core {wheel.PINNED}"
    assert said["files_sha256"] == command.fetch(tmp_path)["files_sha256"]
    assert command.distill(None, tmp_path / "a.xz")["sha256"] == command.distill(file, tmp_path / "b.xz")["sha256"]


def test_models_that_came_later_than_the_table_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "deepseek-v3" in published.load().sources["models"]
    monkeypatch.setitem(command.MODELS, "later-8b", MODELS["llama-3.1-8b"])
    assert command.committed()["models_since"].split(", ")[-1] == "later-8b"


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="holds no wheel"):
        wheel.find(tmp_path)
    (tmp_path / "aiconfigurator_core-1.whl").write_bytes(b"nonsense")
    with pytest.raises(BadRequest, match="is no wheel"):
        wheel.find(tmp_path)


def test_figures_have_their_sources() -> None:
    found = published.facts()
    assert len(found) == 374
    assert all(row["source"] and row["value"] > 0 for row in found)
    assert {row["device"] for row in published.facts("kernel", device="h200")} == {"h200"}
