"""A run as a report sees it, with numbers worked by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.ceilings import Ceilings
from bench.judge import peers
from bench.judge.batches import batches, free_batch
from bench.judge.view import Accuracy, gap
from bench.predict.roofline import predict_from_ceilings
from bench.records import MAY_BE_TOO_SHORT, Record
from bench.report import tables, text
from kernels.ffn_gemv.op import GemvCase
from kernels.op import Impl, Target, implementations, precision
from tests.support.synthetic_run import GB, ROOF, SWEPT, case_record, gemv, measured_view, stream, view


def test_only_the_fastest_of_ours_stands_for_a_case(tmp_path: Path) -> None:
    same = {"case_id": "one", "expected": 1e-4}
    records = [
        gemv(3e-4, impl="triton_a", **same),
        gemv(2e-4, impl="triton_b", **same),
        gemv(1e-4, impl="torch", **same),
    ]
    found = measured_view(tmp_path, records)
    assert [p.record.impl for p in found.best] == ["triton_b"]
    peer = found.peers[0]
    assert (peer.ours.record.impl, peer.peer.record.impl) == ("triton_b", "torch")
    assert peer.ratio.median == pytest.approx(0.5)
    assert peers.by_case(found).rows[0][5] == "peer"


@pytest.mark.parametrize("flag", sorted(MAY_BE_TOO_SHORT))
def test_headlines_leave_out_times_that_may_be_too_short(tmp_path: Path, flag: str) -> None:
    found = measured_view(tmp_path, [gemv(200e-6, flags=[flag]), gemv(500e-6, read=GB)])
    assert max(p.share or 0 for p in found.points) > 1.6
    assert [p.seconds for p in found.large("ffn_gemv")] == [pytest.approx(500e-6)]
    assert tables.summary(found).rows[0][2].startswith("67% ")


def test_small_cases_are_not_large(tmp_path: Path) -> None:
    """The cache holds 50 MB, so a case of 99 MB is not large and one of 100 MB is."""
    small, large = gemv(33e-6, read=99_000_000), gemv(50e-6, read=100_000_000)
    found = measured_view(tmp_path, [small, large])
    assert [p.record.bytes for p in found.large("ffn_gemv")] == [100_000_000]


def test_on_a_host_a_case_that_found_cold_caches_is_large(tmp_path: Path) -> None:
    """The cache holds 480 MB, so no case is twice as large, but the cache is swept between launches."""
    swept, unswept = gemv(4e-3, case_id="a", rotation=SWEPT), gemv(3e-3, case_id="b", rotation={"flush_bytes": 0})
    cpu = measured_view(tmp_path, [swept, unswept], target={"kind": "cpu", "name": "Some CPU"})
    assert [p.record.case_id for p in cpu.large("ffn_gemv")] == ["a"]


@pytest.mark.parametrize(
    ("seconds", "expected", "terms", "extra", "want"),
    [
        (340e-6, 335e-6, {"memory": 335e-6}, 0, "within 5% of the roof"),
        (600e-6, 340e-6, {"memory": 340e-6}, 0, "the model does not explain it"),
        (700e-6, 690e-6, {"memory": 340e-6, "mma_bf16": 690e-6}, 0, "bound by mma_bf16"),
        (
            700e-6,
            690e-6,
            {"memory": 340e-6, "chain": 350e-6},
            0,
            "loads wait for each other before and after the stream: 95%",
        ),
        (700e-6, 690e-6, {"memory": 690e-6}, GB, "it moves more than the compulsory bytes"),
        (700e-6, 690e-6, {"memory": 690e-6}, 0, "a stream of this size is itself below the roof"),
        (
            500e-6,
            690e-6,
            {"memory": 690e-6},
            0,
            "a stream of this size is itself below the roof (launch, ramp, writes): all ",
        ),
    ],
)
def test_the_reason_for_a_gap(
    tmp_path: Path, seconds: float, expected: float, terms: dict[str, float], extra: int, want: str
) -> None:
    bound = max(terms, key=terms.__getitem__)
    found = gemv(seconds)
    stage = {"name": "all", "work": {"flops": {}, "bytes_read": GB + extra, "bytes_written": 0}, "l2_bytes": 0}
    prediction = {"measured": {"seconds": expected, "terms": terms, "bound": bound}}
    shown = view(tmp_path, [dataclasses.replace(found, stages=[stage], prediction=prediction)])
    assert gap(shown.points[0], Ceilings(read_points=((GB, GB / ROOF),))).startswith(want)


CPU = Target(kind="cpu", name="Some CPU", sm_count=2, l2_bytes=1 << 20)
CPU_ROOF = 20e9


def timed_on_a_cpu(impl: Impl, shares: dict[str, float]) -> list[Record]:
    """Reads at `CPU_ROOF`, and the times of one GEMV: each implementation reaches a share of its prediction."""
    case = GemvCase(B=1, N=8192, K=4096, dtype="fp32")
    read = 1 << 28
    roof = stream("read", kind="read", read=read, seconds=read / CPU_ROOF)
    ceilings = Ceilings(read_points=((read, read / CPU_ROOF),), pipes={"fma_fp32": 1e11})
    stages = impl.stages(case, CPU)
    predicted = predict_from_ceilings(stages, ceilings, CPU)
    prediction = {"measured": dataclasses.asdict(predicted)}
    found = [
        case_record(
            "ffn_gemv",
            name,
            dataclasses.asdict(case),
            seconds=predicted.seconds / share,
            prediction=prediction,
            stages=[dataclasses.asdict(stage) for stage in stages],
        )
        for name, share in shares.items()
    ]
    return [roof, *(dataclasses.replace(each, ours=each.impl == "numba") for each in found)]


@pytest.mark.parametrize(
    ("shares", "want", "slow"),
    [
        ({"numba": 0.3, "torch": 0.95}, "the kernel is slow, torch takes 32% of its time", 1),
        ({"numba": 0.3, "torch": 0.3}, "the model does not explain it", 0),
        ({"numba": 0.3, "torch": 0.6}, "the model does not explain it", 0),
        ({"numba": 0.3}, "the model does not explain it", 0),
        ({"numba": 0.97, "torch": 0.3}, "within 5% of the roof", 0),
    ],
)
def test_a_slow_kernel_on_a_cpu_is_told_from_an_error_of_the_model(
    tmp_path: Path, shares: dict[str, float], want: str, slow: int
) -> None:
    """The prediction can be reached where another implementation reached it. Else the model may be wrong."""
    impl = next(each for each in implementations("ffn_gemv")[0] if each.name == "numba")
    target = dataclasses.asdict(CPU)
    shown = view(tmp_path, timed_on_a_cpu(impl, shares), target=target, device={"key": None, "name": "Some CPU"})
    rows = tables.summary(shown).rows
    assert [row[5].split(":")[0] for row in rows] == [want]
    assert len(shown.slow) == slow
    said = "1 of the misses is a slow kernel of ours, for another implementation took the predicted time"
    assert (said in " ".join(text.verdict(shown))) == bool(slow)


def test_free_batch(tmp_path: Path) -> None:
    """The times are 1.0, 1.05, 1.09, 1.2, 1.0: the first three are within 10%, and the last does not count."""
    records = [
        dataclasses.replace(gemv(t * 1e-4, case_id=f"B{b}"), case={"B": b, "N": 8, "K": 8, "dtype": "bf16"})
        for b, t in ((1, 1.0), (2, 1.05), (4, 1.09), (8, 1.2), (16, 1.0))
    ]
    (series,) = batches(view(tmp_path, records).points).values()
    assert list(series) == [1, 2, 4, 8, 16]
    assert free_batch(series) == 4


def test_precision_names_every_type_once() -> None:
    assert precision({"dtype": "bf16", "kv": "fp8", "layout": "NHD", "B": 1}) == "bf16 fp8"
    assert precision({"dtype": "bf16", "weights": "int4_zp", "activations": "bf16"}) == "bf16 int4_zp"
    assert precision({"B": 1}) == ""


def test_accuracy_without_predictions_is_none() -> None:
    assert Accuracy.of([], "measured") is None
