"""The parts are complete, sourced and consistent, and a part is found by key, by driver name or by its properties."""

from __future__ import annotations

import pytest

from bench.devices import DEVICES, DeviceSpec, derive, find, identify
from bench.errors import BadRequest

NAMED = """
    a100-40 a100-80 h100-sxm h100-pcie h100-nvl h200 h200-nvl gh200-96 gh200-144
    b200 b300 gb200 r200 rubin-cpx l40s rtx-4090
    mi300x mi350x mi400 tpu-v5p tpu-ironwood trainium2 trainium3 inferentia2 maia-200 gaudi-3 groq-lpu wse-3
"""
"""The parts that the published claims are about."""

QUANTITIES = {
    "memory_bandwidth": "B/s",
    "memory_capacity": "B",
    "on_chip": "B",
    "on_chip_bandwidth": "B/s",
    "link_bandwidth": "B/s",
    "host_bandwidth": "B/s",
    "power": "W",
}
PIPES = {"mma_bf16", "mma_fp8", "mma_int8", "mma_fp4", "mma_tf32", "fma_fp32"}


def test_every_named_part_is_there_under_its_own_key():
    assert set(DEVICES) >= set(NAMED.split())
    assert all(key == spec.key == key.lower() for key, spec in DEVICES.items())


@pytest.mark.parametrize("spec", DEVICES.values(), ids=list(DEVICES))
def test_every_number_has_a_unit_and_a_source(spec: DeviceSpec):
    held = {name: getattr(spec, name) for name in QUANTITIES if getattr(spec, name)}
    for name, quantity in held.items():
        assert quantity.unit == QUANTITIES[name]
    assert set(spec.peaks) <= PIPES
    assert all(peak.unit == "FLOP/s" for peak in spec.peaks.values())
    for quantity in [*held.values(), *spec.peaks.values()]:
        assert quantity.value > 0
        assert quantity.kind == "datasheet"
        assert len(quantity.source) > 10


@pytest.mark.parametrize("spec", DEVICES.values(), ids=list(DEVICES))
def test_numbers_are_of_a_plausible_size(spec: DeviceSpec):
    """A wrong power of ten shows: GB for TB, TFLOP for PFLOP, GB for GiB."""
    if spec.memory_bandwidth and spec.memory != "SRAM":
        assert 0.5e12 < spec.memory_bandwidth.value < 30e12
        assert 15e9 < spec.memory_capacity.value < 500e9
    if spec.link_bandwidth:
        assert spec.link_bandwidth.value < spec.memory_bandwidth.value
    if spec.host_bandwidth:
        assert 20e9 < spec.host_bandwidth.value < spec.memory_bandwidth.value / 8
    rising = [spec.peaks[p].value for p in ("fma_fp32", "mma_bf16", "mma_fp8", "mma_fp4") if p in spec.peaks]
    assert rising == sorted(rising)
    assert all(1e13 < value < 1e17 for value in rising)
    if spec.power:
        assert 100 < spec.power.value < 30_000


@pytest.mark.parametrize(
    ("key", "pipe", "ridge"),
    [
        ("h100-sxm", "mma_bf16", 989.4 / 3.35),  # 295
        ("h100-sxm", "mma_fp8", 1978.9 / 3.35),  # 591
        ("h200", "mma_bf16", 989.4 / 4.8),  # 206
        ("a100-80", "mma_bf16", 312 / 2.039),  # 153
        ("b200", "mma_bf16", 2250 / 8),  # 281
        ("mi300x", "mma_bf16", 1307.4 / 5.3),  # 247
        ("tpu-v5e", "mma_bf16", 197 / 0.819),  # 241
        ("h100-sxm", "fma_fp32", 66.9 / 3.35),  # 20: the ridge of a dot-product GEMV
    ],
)
def test_ridge_points(key, pipe, ridge):
    found = find(key).ridge(pipe)
    assert found.value == pytest.approx(ridge)
    assert (found.unit, found.kind) == ("FLOP/B", "derived")


def test_what_is_not_published_stays_empty_and_is_named():
    cpx = find("rubin-cpx")
    assert cpx.memory_bandwidth is None
    assert cpx.ridge("mma_fp4") is None
    assert cpx.missing == ("memory_bandwidth", "power", "mma_bf16")
    assert find("wse-3").ridge("mma_bf16") is None  # Cerebras publishes a sparse peak only
    assert "mma_fp8" not in find("mi400").peaks  # AMD does not say whether it is dense
    assert find("r200").missing == ("power",)
    assert find("h100-sxm").missing == ()


@pytest.mark.parametrize(
    ("key", "pipe", "server", "parts", "halved"),
    [
        ("b200", "mma_fp4", 72e15, 8, 1),
        ("b200", "mma_bf16", 36e15, 8, 2),
        ("gb200", "mma_bf16", 180e15, 72, 1),
        ("gb200", "fma_fp32", 5760e12, 72, 1),
        ("b300", "mma_fp4", 108e15, 8, 1),
        ("b300", "mma_fp8", 72e15, 8, 2),
        ("r200", "mma_fp4", 2520e15, 72, 1),
        ("r200", "mma_bf16", 288e15, 72, 1),
        ("h100-nvl", "mma_bf16", 1671e12, 1, 2),
        ("h200-nvl", "mma_bf16", 1671e12, 1, 2),
        ("h200-nvl", "mma_fp8", 3341e12, 1, 2),
        ("gh200-96", "mma_fp8", 3958e12, 1, 2),
    ],
)
def test_peaks_are_dense_and_of_one_part(key, pipe, server, parts, halved):
    """`server` is the printed figure for all `parts`. It is sparse where `halved` is 2."""
    assert find(key).peaks[pipe].value == pytest.approx(server / parts / halved)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA GH200 480GB", "gh200-96"),
        ("NVIDIA GH200 144G HBM3e", "gh200-144"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_driver_names_are_matched_exactly(name, key):
    assert identify(name).key == key


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H200 141GB",
        "NVIDIA GH200",
        "NVIDIA H100",
        "NVIDIA A100-PCIE-40GB",
        "nvidia h200",
        "NVIDIA L40",
        "",
        "H200",
    ],
)
def test_a_similar_name_is_not_a_match(name):
    assert identify(name) is None


def test_no_two_parts_share_a_driver_name():
    names = [name for spec in DEVICES.values() for name in spec.driver_names]
    assert len(names) == len(set(names))


def test_find_names_the_nearest():
    assert find("H100-SXM") is DEVICES["h100-sxm"]
    with pytest.raises(BadRequest, match=r"unknown device 'h100-smx'; did you mean h100-sxm"):
        find("h100-smx")


def test_derivation_reproduces_the_h100_datasheet():
    """Its driver says: 5120 bits, 2619 MHz memory, 132 SMs; tensor peaks are quoted at 1830 MHz."""
    found = derive(
        name="NVIDIA H100 80GB HBM3",
        sm=90,
        sm_count=132,
        sm_clock_hz=1.83e9,
        memory_bus_bits=5120,
        memory_clock_hz=2.619e9,
        memory_bytes=80 << 30,
        l2_bytes=50 << 20,
    )
    known = find("h100-sxm")
    assert found.memory_bandwidth.value == pytest.approx(known.memory_bandwidth.value, rel=0.002)
    for pipe in ("mma_bf16", "mma_fp8", "mma_int8", "mma_tf32"):
        assert found.peaks[pipe].value == pytest.approx(known.peaks[pipe].value, rel=0.002)
    assert found.peaks["fma_fp32"].value == pytest.approx(2 * 128 * 132 * 1.83e9)
    assert found.memory_bandwidth.kind == "derived"
    assert "5120 bits / 8 x 2619 MHz x 2" in found.memory_bandwidth.source


def test_derivation_leaves_out_what_the_capability_does_not_settle():
    found = derive(name="NVIDIA X", sm=89, sm_count=10, sm_clock_hz=1e9, memory_bus_bits=256, memory_clock_hz=1e9)
    assert set(found.peaks) == {"fma_fp32"}
    assert found.memory_capacity is None
    assert found.key == "nvidia-x"
    unknown = derive(name="Y", sm=75, sm_count=1, sm_clock_hz=1e9, memory_bus_bits=64, memory_clock_hz=1e9)
    assert unknown.peaks == {}
    assert unknown.memory_bandwidth.value == 16e9


def test_parts_of_one_die_differ_in_memory_and_clocks_alone():
    names = ("h200", "h200-nvl", "gh200-96", "gh200-144")
    assert {(find(n).sm, find(n).sm_count) for n in names} == {(90, 132)}
    assert [find(n).memory_bandwidth.value / 1e12 for n in names] == [4.8, 4.8, 4.0, 4.9]
    assert [find(n).memory_capacity.value / 1e9 for n in names] == [141, 141, 96, 144]
    assert find("gh200-96").host_bandwidth.value == 450e9, "NVLink-C2C, not PCIe"
    assert find("gh200-96").power is None


def test_target_is_what_a_plan_may_look_at():
    target = find("h100-sxm").target()
    assert (target.kind, target.sm, target.sm_count) == ("cuda", 90, 132)
    assert (target.l2_bytes, target.smem_per_sm) == (50 << 20, 228 << 10)
    with pytest.raises(BadRequest, match="AMD Instinct MI300X is not a CUDA part"):
        find("mi300x").target()
    with pytest.raises(BadRequest, match="number of SMs of NVIDIA B300 is not known"):
        find("b300").target()
