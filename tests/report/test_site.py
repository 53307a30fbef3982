"""The static site: every run has its page, every link leads to a file, and what cannot be read is named."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from bench.errors import BadRequest
from bench.report import calculator, site
from tests.support.synthetic_run import ceiling_records, gemv, write_run


def test_every_link_of_the_site_leads_to_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calculator, "MODELS", {"llama-2-7b": calculator.MODELS["llama-2-7b"]})
    for name in ("part one/a", "part-two/b"):
        device = {"key": None, "name": name.partition("/")[0]}
        write_run(tmp_path / "runs" / name, [*ceiling_records(), gemv(4e-4)], device=device)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "records.jsonl").write_text("")
    found = site.write(tmp_path / "runs", tmp_path / "out", draw=False)
    page = found.index.read_text()
    links = [unquote(link) for link in re.findall(r'href="([^"#][^"]*)"', page) if not link.startswith("data:")]
    assert sorted(links) == ["comparison.html", "part one/a/report.html", "part-two/b/report.html", "predict.html"]
    assert all((tmp_path / "out" / link).is_file() for link in links)
    assert page.count('class="tiles"') == 2
    assert "arithmetic intensity" in page
    assert len(found.notes) == 1
    assert "broken" in found.notes[0]
    assert not (tmp_path / "runs" / "part one/a" / "report.html").exists()


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no run below"):
        site.write(tmp_path, tmp_path / "out")
