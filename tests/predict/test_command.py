"""Rows, table, remarks and plot of `decodebench predict`."""

from __future__ import annotations

import json

import pytest

from bench.errors import BadRequest
from bench.predict.command import ROW, load_shape, plot, remarks, rows, table
from bench.predict.expected_rows import communication

ASKED = {"model": "llama-3.1-70b", "parts": ["h100-sxm", "b200"], "batches": [1, 64], "context": 4096}


def test_rows_are_plain_json_with_the_same_keys_everywhere():
    found = rows(**ASKED | {"parts": ["h100-sxm", "rubin-cpx", "wse-3"]}, dollars_per_hour=2.5)
    assert len(found) == 6
    assert all(set(row) == set(ROW) for row in found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_row_holds_the_prediction():
    row = rows(**ASKED, dollars_per_hour=2.5)[0]
    assert row["weight_seconds"] == pytest.approx(0.0415, rel=1e-3)
    assert row["seconds"] == pytest.approx(row["weight_seconds"] + 4096 * 327_680 / 3.35e12, rel=1e-3)
    assert row["dollars_per_million_tokens"] == pytest.approx(2.5 / 3600 * row["seconds"] * 1e6)
    assert row["joules_per_token_at_rated_power"] == pytest.approx(700 * row["seconds"])
    assert (row["fits"], row["max_batch"], row["bound"]) == (False, 0, "memory")
    assert {op["name"]: op["crossing_batch"] for op in row["ops"]}["gate_up"] == 309


def test_table_has_a_cell_under_every_header_and_no_empty_price():
    headers, lines = table(rows(**ASKED))
    assert all(len(line) == len(headers) for line in lines)
    assert "$/M out" not in headers
    assert "J/token at rated power" in headers
    first = dict(zip(headers, lines[0], strict=True))
    assert (first["part"], first["weights ms"], first["KV ms"], first["fits"]) == ("h100-sxm", "41.5", "0.401", "no")
    assert first["FFN compute-bound from"] == "batch 309"
    assert dict(zip(headers, lines[3], strict=True))["max batch"] == "15"
    priced, _ = table(rows(**ASKED, dollars_per_hour=2.5))
    assert "$/M out" in priced


def test_devices_and_experts_show_in_the_table():
    found = rows(model="deepseek-v3", parts=["h200"], batches=[1], context=4096, weights="fp8", devices=8)
    headers, lines = table(found)
    cells = dict(zip(headers, lines[0], strict=True))
    assert cells["part"] == "8 x h200"
    assert int(cells["FFN compute-bound from"].removeprefix("batch ").replace(",", "")) > 6000


def test_a_crossing_is_not_known_without_the_peak():
    headers, lines = table(rows(**ASKED | {"parts": ["wse-3"]}))
    assert dict(zip(headers, lines[0], strict=True))["FFN compute-bound from"] == "?"


def test_remarks_say_what_kv_adds_what_fits_and_what_is_not_published():
    lines = remarks(rows(**ASKED | {"parts": ["h100-sxm", "b200", "rubin-cpx", "r200"]}))
    assert lines[0] == (
        "llama-3.1-70b, weights bf16, KV cache bf16, 4,096 tokens; "
        "a floor: launches, norms, sampling and the latency of links are not counted"
    )
    assert lines[1] == (
        "h100-sxm: weights take 141 GB; reading those that a step of batch 1 needs takes 41.5 ms; each request's KV "
        "cache (1.34 GB at 4,096 tokens) adds 0.401 ms; no request fits in 80 GB less 8 GB of reserve"
    )
    assert "a batch of up to 15 fits in 180 GB less 18 GB of reserve" in lines[2]
    groq = remarks(rows(**ASKED | {"parts": ["groq-lpu"]}))[1]
    assert groq.endswith("no request fits in 230 MB less 23 MB of reserve")
    assert lines[4].startswith("rubin-cpx: no memory bandwidth of NVIDIA Rubin CPX is published")
    assert lines[-1] == "r200: not published: power"


def test_a_config_file_is_a_model(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 2048}
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4} | sizes
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    row = rows(config=path, parts=["h100-sxm"], batches=[1], context=100)[0]
    assert row["weight_bytes"] == 2 * (2 * (4 * 256 * 256 + 3 * 256 * 512) + 2 * 1000 * 256)
    path.write_text(json.dumps(config | {"vocab_size": None}))
    with pytest.raises(BadRequest, match=r"config\.json: field 'vocab_size' is missing"):
        load_shape(config=path)
    path.write_text("{")
    with pytest.raises(BadRequest, match="is not JSON"):
        load_shape(config=path)
    path.write_text("[]")
    with pytest.raises(BadRequest, match="holds no JSON object"):
        load_shape(config=path)
    path.write_text(json.dumps(config))
    assert load_shape("mine", path).name == "mine"
    with pytest.raises(BadRequest, match=r"Llama-3\.1-70B is a known model and .*config\.json describes one"):
        load_shape("Llama-3.1-70B", path)
    with pytest.raises(BadRequest, match=r"cannot read .*absent: No such file"):
        load_shape(config=tmp_path / "absent")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama-3-70b"}, r"unknown model 'llama-3-70b'; did you mean llama-.*70b"),
        ({"parts": ["h1000"]}, r"unknown device 'h1000'; did you mean h"),
        ({"context": 200_000}, r"context 200000 is beyond llama-3\.1-70b's longest"),
        ({"model": None}, r"name a model or a config\.json"),
        ({"dollars_per_hour": -1.0}, "--price must be above 0"),
        ({"dollars_per_hour": float("nan")}, "--price must be above 0"),
    ],
)
def test_errors_are_one_clear_line(changes, message):
    with pytest.raises(BadRequest, match=message) as caught:
        rows(**ASKED | changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "devices", "heads", "fitting"),
    [
        ("llama-3.1-70b", 3, "64 query heads and 8 KV heads", "1, 2, 4, 8, 16, 32, 64"),
        ("mixtral-8x7b", 12, "32 query heads and 8 KV heads", "1, 2, 4, 8, 16, 32"),
        ("deepseek-v3", 6, "128 query heads", "1, 2, 4, 8, 16, 32, 64, 128"),
    ],
)
def test_an_uneven_split_is_refused_and_the_even_ones_are_named(model, devices, heads, fitting):
    with pytest.raises(BadRequest) as caught:
        rows(**ASKED | {"model": model, "devices": devices})
    assert str(caught.value) == f"{model} has {heads}: {devices} devices cannot share them evenly; try {fitting}"
    rows(**ASKED | {"model": "llama-3.1-70b", "devices": 16})


def test_no_devices_are_refused_as_such():
    with pytest.raises(BadRequest, match="devices must be at least 1, not 0"):
        rows(**ASKED | {"devices": 0})


def test_plot_is_written_and_holds_every_part(tmp_path):
    path = tmp_path / "plot.svg"
    plot(path, rows(**ASKED | {"parts": ["h100-sxm", "b200", "rubin-cpx"]}))
    text = path.read_text()
    assert text.count("<svg") == 1
    assert "h100-sxm" in text  # matplotlib writes each text as a comment beside its glyphs
    assert "gate_up" in text
    assert "rubin-cpx" not in text


def test_plot_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(BadRequest, match=r"cannot write .*plot\.xyz"):
        plot(tmp_path / "plot.xyz", rows(**ASKED))
    with pytest.raises(BadRequest, match=r"cannot write .*plot\.png: No such file"):
        plot(tmp_path / "nowhere" / "plot.png", rows(**ASKED))
    with pytest.raises(BadRequest, match=r"end the name in \.png"):
        plot(tmp_path, rows(**ASKED))
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadRequest, match="nothing to plot"):
        plot(tmp_path / "plot.svg", rows(**ASKED | {"parts": ["rubin-cpx"]}))


def test_remarks_say_what_collectives_take_of_a_step():
    """Llama-3.1-70B on 2, 4 and 8 parts: more of the step each time. DeepSeek-V3 also by dispatch and combine."""
    one = ASKED | {"parts": ["h100-sxm"], "batches": [1]}
    found = [row for devices in (2, 4, 8) for row in rows(**one, devices=devices, expect=True)]
    shares = [row["expected_all_reduce_seconds"] / row["expected_seconds"] for row in found]
    assert shares == sorted(shares)
    assert all(row["expected_exchange_seconds"] is None for row in found)
    assert communication(found) == [
        f"all-reduces on {n} x h100-sxm: {100 * share:.0f}% of the expected step"
        for n, share in zip((2, 4, 8), shares, strict=True)
    ]
    many = {"model": "deepseek-v3", "parts": ["h200"], "batches": [64], "weights": "fp8", "devices": 8}
    (row,) = rows(**ASKED | many, expect=True)
    share = row["expected_exchange_seconds"] / row["expected_seconds"]
    line = f"were experts whole on 8 x h200: dispatch and combine {100 * share:.0f}% of the expected step"
    assert communication([row])[1:] == [line]
    assert 0.02 < share < 0.5
