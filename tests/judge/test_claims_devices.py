"""Claims judged by runs of one or several devices: which device may judge, together with which predictions."""

from __future__ import annotations

import pytest

from bench.judge.claims import Verdict, explain, judge, scorecard, sentence
from bench.judge.claims.words import short_status
from bench.run import Run
from tests.support.claim_records import H100, attend, full_run, gemm, host_copy, l2_read, layer, read, run

A100, H200 = "NVIDIA A100-SXM4-80GB", "NVIDIA H200"
OF_THE_CPU = (gemm(1e12), layer(1), layer(64), layer(256), attend(64, 8), attend(64, 8, kv="fp8", time=1.9))


def decided(verdicts: list[Verdict]) -> dict[str, tuple[str, str]]:
    return {v.claim.id: (v.status, v.condition) for v in verdicts}


@pytest.mark.parametrize(
    "other",
    [run(read(1.5e12), device=A100), run(read(1e11), *OF_THE_CPU, device="Xeon", kind="cpu")],
    ids=["a GPU that read memory", "a CPU that ran everything"],
)
def test_a_run_that_judges_nothing_changes_nothing(other: Run) -> None:
    slow = [layer(B, bandwidth=1.5e12, peak=1e14) for B in (1, 64, 256)]
    assert judge("M1", [run(*slow)]).status == "FAILS"
    assert judge("T1", [run(layer(1))]).status == "DEPENDS"
    for mine in (full_run(), run(*slow)):
        assert decided(scorecard([mine, other])) == decided(scorecard([mine]))


def layers(time: float, device: str) -> Run:
    """A gate in 16 bits, and one in FP8 with FP8 arithmetic, `time` times as slow as its halved bytes allow."""
    return run(layer(1), layer(1, "fp8", bandwidth=3e12 / time, pipe="mma_fp8"), device=device)


def test_what_devices_measured_is_judged_with_the_predictions_beside_it() -> None:
    """T7 has three numbers at one setting: memory and arithmetic are predicted, and time is measured."""
    assert judge("T7", [layers(1, H100)]).condition == "weights 8-bit in 8-bit arithmetic"
    assert judge("T7", [layers(1.8, H100)]).status == "FAILS"
    assert judge("T7", [layers(1.8, H100), layers(1.8, A100)]).status == "FAILS", "both miss"
    one = judge("T7", [layers(1.8, H100), layers(1, A100)])
    assert (one.status, one.condition) == ("DEPENDS", f"on {A100}, weights 8-bit in 8-bit arithmetic")


def test_settings_that_name_their_part_need_no_device() -> None:
    runs = [run(read(), l2_read(l2), host_copy(), device=device) for device, l2 in ((H100, 6e12), (H200, 3.3e12))]
    verdict = judge("H6", runs)
    assert {c.setting["part"] for c in verdict.evidence} == {"NVIDIA H100 SXM", "NVIDIA H200 SXM"}
    assert not [c for c in verdict.evidence if "device" in c.setting]
    on_chip = verdict.condition.split(" | ")[0]
    assert on_chip == "the tier on chip, on NVIDIA H100 SXM or NVIDIA A100 SXM 80 GB", "the H200 misses"


def test_a_run_on_a_cpu_is_shown_and_decides_nothing_about_gpus() -> None:
    narrow = [layer(1), layer(1, "fp8", bandwidth=3e12, pipe="mma_fp8")]
    verdict = judge("T7", [run(*narrow, device="Xeon", kind="cpu")])
    assert verdict.status == "NOT MEASURED"
    assert "CPU only" in verdict.reason
    assert verdict.measured
    assert not verdict.measured[0].on_gpu
    assert "[CPU]" in explain(verdict)
    for every in scorecard([run(read(), gemm(), layer(1), attend(64, 8), device="Xeon", kind="cpu")]):
        if every.claim.needs_measurement and not every.claim.any_part:
            assert every.status == "NOT MEASURED", every.claim.id
            assert "CPU only" in every.reason or every.claim.never, every.claim.id


def test_a_claim_about_any_part_is_judged_on_a_cpu_unless_a_gpu_ran() -> None:
    cpu = run(attend(64, 8), attend(64, 8, kv="fp8"), device="Xeon", kind="cpu")
    verdict = judge("T6", [cpu])
    assert verdict.by == "MEASURED"
    assert not any(c.on_gpu for c in verdict.evidence)
    assert short_status(verdict) == f"{verdict.status} on this CPU"
    assert "on this CPU" in sentence(verdict)
    assert "MEASURED on this CPU" in explain(verdict)
    gpu = run(attend(64, 8), attend(64, 8, kv="fp8", time=1.9))
    assert decided([judge("T6", [cpu, gpu])]) == decided([judge("T6", [gpu])])


def test_another_part_does_not_judge_the_h100() -> None:
    verdict = judge("T1", [run(layer(1), device="NVIDIA A100-SXM4-80GB")])
    assert verdict.status == "NOT MEASURED"
    assert "A100" in verdict.reason


def test_time_across_devices_needs_two_gpus() -> None:
    h100 = run(read(3.0e12), layer(1, bandwidth=3.0e12))
    assert "two different GPUs" in judge("I12", [h100]).reason
    assert "two different GPUs" in judge("I12", [h100, h100]).reason
    h200 = run(read(4.2e12), layer(1, bandwidth=4.2e12), device="NVIDIA H200")
    assert judge("I12", [h100, h200]).status == "HOLDS"
    no_faster = run(read(4.2e12), layer(1, bandwidth=3.0e12), device="NVIDIA H200")
    assert judge("I12", [h100, no_faster]).status == "DEPENDS", "only the prediction follows bandwidth"


def test_the_other_parts_of_t2_are_measured_by_their_own_runs() -> None:
    h200 = run(layer(1, bandwidth=4.5e12), device="NVIDIA H200")
    verdict = judge("T2", [run(layer(1)), h200])
    assert verdict.measured
    assert {c.published.what for c in verdict.measured} == {"time per token on an H200"}
