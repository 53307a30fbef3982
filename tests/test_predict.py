"""Rows, table, remarks and plot of `decodebench predict`."""

from __future__ import annotations

import json

import pytest

from bench import predict
from bench.errors import BadRequest

ASKED = {"model": "llama-3.1-70b", "parts": ["h100-sxm", "b200"], "batches": [1, 64], "context": 4096}


def test_rows_are_plain_json_with_the_same_keys_everywhere():
    found = predict.rows(**ASKED | {"parts": ["h100-sxm", "rubin-cpx", "wse-3"]}, dollars_per_hour=2.5)
    assert len(found) == 6
    assert all(set(row) == set(predict.ROW) for row in found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_row_holds_the_prediction():
    row = predict.rows(**ASKED, dollars_per_hour=2.5)[0]
    assert row["weight_seconds"] == pytest.approx(0.0415, rel=1e-3)
    assert row["seconds"] == pytest.approx(row["weight_seconds"] + 4096 * 327_680 / 3.35e12, rel=1e-3)
    assert row["dollars_per_million_tokens"] == pytest.approx(2.5 / 3600 * row["seconds"] * 1e6)
    assert row["joules_per_token_bound"] == pytest.approx(700 * row["seconds"])
    assert (row["fits"], row["max_batch"], row["bound"]) == (False, 0, "memory")
    assert {op["name"]: op["crossing_batch"] for op in row["ops"]}["gate_up"] == 309


def test_table_has_a_cell_under_every_header_and_no_empty_price():
    headers, lines = predict.table(predict.rows(**ASKED))
    assert all(len(line) == len(headers) for line in lines)
    assert "$/M out" not in headers
    first = dict(zip(headers, lines[0], strict=True))
    assert (first["part"], first["weights ms"], first["KV ms"], first["fits"]) == ("h100-sxm", "41.5", "0.401", "no")
    assert first["FFN compute-bound from"] == "batch 309"
    assert dict(zip(headers, lines[3], strict=True))["max batch"] == "15"
    priced, _ = predict.table(predict.rows(**ASKED, dollars_per_hour=2.5))
    assert "$/M out" in priced


def test_devices_and_experts_show_in_the_table():
    found = predict.rows(model="deepseek-v3", parts=["h200"], batches=[1], context=4096, weights="fp8", devices=8)
    headers, lines = predict.table(found)
    cells = dict(zip(headers, lines[0], strict=True))
    assert cells["part"] == "8 x h200"
    assert int(cells["FFN compute-bound from"].removeprefix("batch ").replace(",", "")) > 6000


def test_operations_of_one_row():
    row = predict.rows(**ASKED)[1]  # H100, batch 64
    headers, lines = predict.ops_table(row)
    cells = {line[0]: dict(zip(headers, line, strict=True)) for line in lines}
    assert list(cells)[:4] == ["embedding", "qkv", "kv_append", "attention"]
    assert cells["attention"]["FLOP/B"] == "7.98"  # 64 query heads over 8 KV heads
    assert cells["attention"]["compute-bound from"] == "never"
    assert cells["gate_up"]["compute-bound from"] == "batch 309"
    assert sum(float(line[2].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.5)
    unknown = predict.rows(**ASKED | {"parts": ["wse-3"]})[0]
    assert {line[5] for line in predict.ops_table(unknown)[1]} == {"?", "never"}


def test_remarks_say_what_kv_adds_what_fits_and_what_is_not_published():
    lines = predict.remarks(predict.rows(**ASKED | {"parts": ["h100-sxm", "b200", "rubin-cpx", "r200"]}))
    assert lines[0] == (
        "h100-sxm: weights take 141.1 GB, and reading those of batch 1 41.5 ms by itself; each request's KV cache "
        "(1.34 GB at 4,096 tokens) adds 0.401 ms; not one fits in 80 GB less 8 GB of reserve"
    )
    assert "15 fit in 180 GB less 18 GB of reserve" in lines[1]
    assert lines[2].startswith("rubin-cpx: no memory bandwidth of NVIDIA Rubin CPX is published")
    assert lines[-1] == "r200: not published: power"


def test_a_config_file_is_a_model(tmp_path):
    config = {
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4,
        "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 2048,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    row = predict.rows(config=path, parts=["h100-sxm"], batches=[1], context=100)[0]
    assert row["weight_bytes"] == 2 * (2 * (4 * 256 * 256 + 3 * 256 * 512) + 2 * 1000 * 256)
    path.write_text(json.dumps(config | {"vocab_size": None}))
    with pytest.raises(BadRequest, match=r"config\.json: field 'vocab_size' is missing"):
        predict.load_shape(config=path)
    path.write_text("{")
    with pytest.raises(BadRequest, match="is not JSON"):
        predict.load_shape(config=path)
    path.write_text("[]")
    with pytest.raises(BadRequest, match="holds no JSON object"):
        predict.load_shape(config=path)
    with pytest.raises(BadRequest, match=r"cannot read .*absent: No such file"):
        predict.load_shape(config=tmp_path / "absent")


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
        predict.rows(**ASKED | changes)
    assert "\n" not in str(caught.value)


def test_argument_lists():
    assert predict.split(" h100-sxm, b200 ,", "device") == ["h100-sxm", "b200"]
    assert predict.whole_numbers("1,8, 64", "batch") == [1, 8, 64]
    with pytest.raises(BadRequest, match=r"--batch wants whole numbers, not '1\.5'"):
        predict.whole_numbers("1,1.5", "batch")
    with pytest.raises(BadRequest, match="--device is empty"):
        predict.split(" ,", "device")


def test_plot_is_written_and_holds_every_part(tmp_path):
    path = tmp_path / "plot.svg"
    predict.plot(path, predict.rows(**ASKED | {"parts": ["h100-sxm", "b200", "rubin-cpx"]}))
    text = path.read_text()
    assert text.count("<svg") == 1
    assert "h100-sxm" in text  # matplotlib writes each text as a comment beside its glyphs
    assert "gate_up" in text
    assert "rubin-cpx" not in text


def test_plot_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(BadRequest, match=r"cannot write .*plot\.xyz"):
        predict.plot(tmp_path / "plot.xyz", predict.rows(**ASKED))
    with pytest.raises(BadRequest, match=r"cannot write .*plot\.png: No such file"):
        predict.plot(tmp_path / "nowhere" / "plot.png", predict.rows(**ASKED))
    with pytest.raises(BadRequest, match=r"end the name in \.png"):
        predict.plot(tmp_path, predict.rows(**ASKED))
    assert not list(tmp_path.iterdir())
    with pytest.raises(BadRequest, match="nothing to plot"):
        predict.plot(tmp_path / "plot.svg", predict.rows(**ASKED | {"parts": ["rubin-cpx"]}))
