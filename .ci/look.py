"""Check what a smoke run wrote: its records are complete, its figures are not empty, and its report names them."""

import json
import sys
from pathlib import Path

from bench.run import load_run

run = json.loads(Path(sys.argv[1]).read_text())
directory = Path(run["directory"])
records = load_run(directory)
assert records.complete
assert not records.warnings, records.warnings
measured = [r for r in records.records if r.status == "ok"]
assert measured, "nothing was measured"
assert {r.op for r in measured} >= {"stream", "gemm_peak", "ffn_gemv", "attention_decode"}
assert all(r.prediction["measured"] for r in measured if r.op not in ("stream", "gemm_peak"))
text = (directory / "report.md").read_text()
figures = sorted((directory / "figures").iterdir())
assert figures, "no figures"
for figure in figures:
    assert figure.stat().st_size > 5000, f"{figure.name} is empty"
    assert figure.name in text, f"{figure.name} is not in the report"
print(f"{len(measured)} measured, {len(figures)} figures, {len(text.splitlines())} lines of report")
