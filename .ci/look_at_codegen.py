"""Check that code generation covered these architectures (`FILE 80 90 100`) and found no problem in any kernel.

With a last word `slots`, kernels also issue what their stages declare, up to a tenth. Stages declare what the newest
Triton makes of them.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from bench.inspection.codegen.judge import misdeclared

file, *parts = sys.argv[1:]
slots = parts[-1] == "slots" and parts.pop()
reports = json.loads(Path(file).read_text())
assert {r["sm"] for r in reports} == set(map(int, parts))
for report in reports if slots else ():
    report["problems"] += filter(None, [misdeclared(SimpleNamespace(**report))])
bad = [r for r in reports if r["problems"]]
for report in bad:
    print(report["op"], report["kernel"], report["case_id"], f"sm_{report['sm']}", *report["problems"], sep=": ")
assert not bad
print(f"{len(reports)} compiled kernels without a spill or another problem")
