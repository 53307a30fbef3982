"""Another process in which Triton kernels are compiled: in this one they are interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.support import ROOT


def elsewhere(module: str, expression: str) -> Any:
    """What `expression`, with a test module as `t`, gives as JSON in a process without TRITON_INTERPRET."""
    code = f"import json, {module} as t\nprint(json.dumps({expression}))"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
