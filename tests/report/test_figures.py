"""The figures of a report, read back from what was drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench.judge.view import View
from bench.records import Record
from bench.report import figures
from bench.report.drawing import COLOURS, MARKERS, style
from kernels.op import discover
from tests.support.synthetic_run import ON_A_CPU, SWEPT, gemv, record, stream, view


def swept_gemv(name: str, share: float, *, size: int = 1 << 24, intensity: float = 1.0, **changes: Any) -> Record:
    """A peer's case on a host that reads 20 GB/s, at a share of that."""
    flops = {"fma_fp32": int(intensity * size)}
    fields = {"impl": "torch", "case_id": name, "read": size, "flops": flops, "rotation": SWEPT, **changes}
    return gemv(size / 2e10 / share, **fields)


def host(tmp_path: Path, records: list[Record]) -> View:
    read = stream("read", impl="torch", read=1 << 28, seconds=(1 << 28) / 2e10)
    peak = record("gemm_peak", "torch", "fp32", flops={"fma_fp32": 10**10}, seconds=0.1)
    return view(tmp_path, [read, peak, *records], **ON_A_CPU)


def words(axes: Any) -> dict[str, Any]:
    return {found.get_text(): found for found in axes.texts}


def test_peers_alone_are_hollow_in_their_ops_colour_and_flags_are_dots(tmp_path: Path) -> None:
    from matplotlib.colors import to_hex

    flagged = swept_gemv("b", 0.6, flags=["noisy"])
    found = host(tmp_path, [swept_gemv("a", 0.5), flagged, dataclasses.replace(flagged, op="moe_ffn", flags=[])])
    for figure in (figures.roofline(found), figures.efficiency(found)):
        assert figure
        drawn = [c for axes in figure.axes for c in axes.collections]
        outlined = {to_hex(c.get_edgecolor()[0]).upper() for c in drawn if not len(c.get_facecolor())}
        assert outlined == {style("ffn_gemv")[0], style("moe_ffn")[0]}
        assert [len(c.get_offsets()) for c in drawn if len(c.get_facecolor())] == [1]


def test_every_op_has_a_colour_and_a_marker_of_its_own() -> None:
    assert len(COLOURS) == len(set(COLOURS)) == len(MARKERS) == len(set(MARKERS))
    drawn = [name for name, op in discover().items() if not op.is_ceiling]
    styles = [style(op) for op in drawn]
    assert len(set(styles)) == len(drawn)
    assert styles[: len(COLOURS)] == list(zip(COLOURS, MARKERS, strict=True))[: len(drawn)]


def test_an_ops_colour_is_the_same_in_every_run(tmp_path: Path) -> None:
    """Also if the op is alone in its run, or if this version does not know it."""
    from matplotlib.colors import to_hex

    one = dataclasses.replace(swept_gemv("a", 0.5), op="prefill")
    figure = figures.roofline(host(tmp_path, [one]))
    assert figure
    drawn = {to_hex(c.get_edgecolor()[0]).upper() for axes in figure.axes for c in axes.collections}
    assert drawn == {style("prefill")[0]}
    assert style("attention_decode")[0] != style("prefill")[0]
    assert style("of another version")


def test_the_roofline_says_whose_work_it_counts(tmp_path: Path) -> None:
    figure = figures.roofline(host(tmp_path, [swept_gemv("a", 0.5)]))
    assert figure
    (title,) = [axes.get_title(loc="left").strip() for axes in figure.axes]
    assert title == "1 of 1 decode cases lie left of their ridge by compulsory work"


def test_the_roofs_label_keeps_away_from_points(tmp_path: Path) -> None:
    """Points lie on the roof from 0.5 to 1 FLOP/B. The label would start there, but starts beyond them."""
    crowd = [swept_gemv(f"c{n}", 1.1, intensity=0.5 + n / 10) for n in range(6)]
    label = "measured 20.0 GB/s"
    near = figures.roofline(host(tmp_path, [*crowd, swept_gemv("last", 0.5, intensity=1.0)]))
    assert near
    assert words(near.axes[0])[label].xy[0] > 1.0
    free = figures.roofline(host(tmp_path / "free", [swept_gemv("low", 0.01, intensity=0.5)]))
    assert free
    assert words(free.axes[0])[label].xy[0] < 0.5


def test_the_roofline_ends_where_its_data_ends(tmp_path: Path) -> None:
    """The ridge is at 1e11 / 2e10 = 5 FLOP/B, and the axis ends at four times that."""
    figure = figures.roofline(host(tmp_path, [swept_gemv("a", 0.5)]))
    assert figure
    assert figure.axes[0].get_xlim() == pytest.approx((0.5, 20.0))


def test_tiny_and_impossible_shares_are_spelt_out(tmp_path: Path) -> None:
    tiny = dataclasses.replace(swept_gemv("a", 0.01), op="kv_append")
    figure = figures.efficiency(
        host(tmp_path, [tiny, swept_gemv("b", 1.64, flags=["impossible"]), swept_gemv("c", 0.6)])
    )
    assert figure
    small, gemvs = figure.axes
    assert "every point is below 5%" in words(small)
    assert small.get_title(loc="left") == "kv_append: up to 1.0%"
    assert "164%" in words(gemvs)
    assert "every point is below 5%" not in words(gemvs)
    assert gemvs.get_ylim()[1] < 1.3
