"""Check that code generation covered these architectures (`FILE 80 90 100`) and found no problem in any kernel."""

import json
import sys
from pathlib import Path

reports = json.loads(Path(sys.argv[1]).read_text())
assert {r["sm"] for r in reports} == set(map(int, sys.argv[2:]))
bad = [r for r in reports if r["problems"]]
for report in bad:
    print(report["op"], report["kernel"], report["case_id"], f"sm_{report['sm']}", *report["problems"], sep=": ")
assert not bad
print(f"{len(reports)} compiled kernels without a spill or another problem")
