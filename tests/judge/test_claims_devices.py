"""Claims judged by runs of several devices: predictions stay beside what each device measured."""

from __future__ import annotations

import pytest

from bench.judge.claims import Verdict, judge, scorecard
from bench.records import Run
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
    """A gate in 16 bits and one in FP8 with FP8 arithmetic, whose bytes are half, `time` times as slow as they are."""
    return run(layer(1), layer(1, "fp8", bandwidth=3e12 / time, pipe="mma_fp8"), device=device)


def test_what_devices_measured_is_judged_with_the_predictions_beside_it() -> None:
    """Of T7 the memory and the arithmetic are predicted, the time is measured: three numbers of one setting."""
    assert judge("T7", [layers(1, H100)]).condition == "weights 8-bit in 8-bit arithmetic"
    assert judge("T7", [layers(1.8, H100)]).status == "FAILS"
    assert judge("T7", [layers(1.8, H100), layers(1.8, A100)]).status == "FAILS", "both measured it off"
    one = judge("T7", [layers(1.8, H100), layers(1, A100)])
    assert (one.status, one.condition) == ("DEPENDS", f"device {A100}, weights 8-bit in 8-bit arithmetic")


def test_settings_that_name_their_part_need_no_device() -> None:
    runs = [run(read(), l2_read(l2), host_copy(), device=device) for device, l2 in ((H100, 6e12), (H200, 3.3e12))]
    verdict = judge("H6", runs)
    assert {c.setting["part"] for c in verdict.evidence} == {"NVIDIA H100 SXM", "NVIDIA H200 SXM"}
    assert not [c for c in verdict.evidence if "device" in c.setting]
    on_chip = verdict.condition.split(" | ")[0]
    assert on_chip == "tier on chip, part NVIDIA H100 SXM or NVIDIA A100 SXM 80 GB", "the H200's was measured off"
