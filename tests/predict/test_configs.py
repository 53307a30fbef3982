"""`predict --config` over many files: one table of what each model holds, beside what its publisher says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import BadRequest
from bench.predict.configs import KEYS, PUBLISHED, files_of, lines, rows, table
from tests.support import ROOT
from tests.support.terminal import on_a_terminal

CONFIGS = ROOT / "tests/data/configs"


def test_every_public_file_is_a_row_and_what_is_published_fits() -> None:
    found = rows([path for path in files_of([CONFIGS]) or [] if path.stem != "parameters_of_classes"])
    assert [row["error"] for row in found if row["error"]] == []
    known = [row for row in found if row["published_parameters"]]
    assert len(known) == len({row["model"] for row in known}) >= 17
    for row in known:
        assert row["parameters_off_by"] == pytest.approx(0, abs=0.01), row["model"]
        assert row["weight_bytes_off_by"] is None or abs(row["weight_bytes_off_by"]) < 0.005
        active = row["published_active_parameters"]
        assert active is None or row["active_parameters"] < active * 1.06
    assert set(PUBLISHED) - {row["model"].rpartition("--")[2].lower() for row in known} == {
        "qwen3-next-80b-a3b-instruct"
    }
    assert all(set(row) == set(KEYS) for row in found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"model_type": "no-such-family"}')
    (tmp_path / "b.json").write_text("[")
    (tmp_path / "c.hf_quant_config.json").write_text("{}")
    (tmp_path / "d" / "config.json").parent.mkdir()
    shutil.copy(CONFIGS / "Qwen--Qwen3-8B.json", tmp_path / "d" / "config.json")
    files = files_of([tmp_path])
    assert files is not None
    assert [path.name for path in files] == ["a.json", "b.json", "config.json"]
    found = rows(files)
    headers, texts = table(found)
    cells = [dict(zip(headers, line, strict=True)) for line in texts]
    assert "no-such-family" in cells[0]["remark"]
    assert "is not JSON" in cells[1]["remark"]
    assert all("\n" not in line["remark"] for line in cells)
    assert (cells[2]["model"], cells[2]["parameters"], cells[2]["KV B/token"]) == ("d", "8.19 B", "147,456")
    assert [line[0] for line in table(found, narrow=True)[1]] == ["d"]
    said = lines(found)
    assert said[0].startswith(f"{files[0]}: config.json: model_type 'no-such-family' is not known")
    assert said[-1].startswith("1 of 3 files read")


def test_one_file_and_one_checkpoint_are_a_model_and_not_a_table(tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "Qwen--Qwen3-8B.json", tmp_path / "config.json")
    assert files_of([tmp_path]) is None
    assert files_of([tmp_path / "config.json"]) is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match=r"no \.json file in"):
        files_of([tmp_path / "empty"])


def test_the_command(tmp_path: Path) -> None:
    names = ("Qwen--Qwen3-8B", "openai--gpt-oss-20b")
    files = [str(CONFIGS / f"{name}.json") for name in names]
    run = CliRunner().invoke
    shown = run(app, ["predict", "--config", *files, "--csv"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[0].startswith("model,parameters,active,KV B/token")
    told = json.loads(run(app, ["predict", "--config", *files, "--json", "--kv", "fp8"]).stdout)
    assert [row["model"] for row in told] == list(names)
    assert told[0]["kv_bytes_per_token"] < 147_456 * 0.6
    assert run(app, ["predict", *files]).exit_code != 0
    assert run(app, ["predict", "--config", *files, "--model", "x"]).exit_code != 0
    (tmp_path / "bad.json").write_text("{}")
    assert run(app, ["predict", "--config", str(tmp_path)]).exit_code == 2


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_on_a_terminal(columns: int) -> None:
    names = ("openai--gpt-oss-120b", "nvidia--Llama-3.1-70B-Instruct-FP8")
    said = on_a_terminal(columns, "predict", "--config", *(str(CONFIGS / f"{name}.json") for name in names))
    shown = said.strip().splitlines()
    assert shown[0].split()[:2] == ["model", "parameters"]
    assert [line.split()[0] for line in shown[-2:]] == list(names)
    assert all(len(line) <= columns for line in shown)
    assert "weight" in said
