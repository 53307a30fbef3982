"""Run the sm_90 code of each of our implementations on the emulator, in bf16, on its smallest test case.

The emulator reads the PTX that the installed Triton writes. `.ci/run` calls this at the low end of the version range.
"""

import sys
import time
from pathlib import Path

import triton

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.inspection.test_compiled_kernels import OURS, found, gate, part
from tests.kernels.test_ops import in_bf16

SM = 90
began, wrong = time.monotonic(), []
for name, impl_name in OURS:
    op, impl = found(name, impl_name)
    cases = [in_bf16(case) if getattr(case, "dtype", "") == "fp16" else case for case in op.cases("test")]
    supported = [case for case in cases if impl.build and impl.supports(case, part(SM)) is None]
    if not supported:
        continue
    case = min(supported, key=lambda case: op.work(case).bytes)
    started = time.monotonic()
    errors = gate(op, impl, case, SM, None)
    print(
        f"{name} {impl_name} {case.id}: {'ok' if errors.passed else errors.reason} ({time.monotonic() - started:.1f} s)"
    )
    if not errors.passed:
        wrong.append((name, impl_name, case.id))
assert not wrong, wrong
print(f"triton {triton.__version__}: emulated sm_{SM} code is right ({time.monotonic() - began:.0f} s)")
