"""Another process in which Triton kernels are compiled: in this one they are interpreted."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from functools import cache
from typing import Any

from tests.support import ROOT


def elsewhere(module: str, expression: str) -> Any:
    """What `expression`, with a module as `t`, gives as JSON in a process without TRITON_INTERPRET.

    One process serves all tests, so that torch is imported once.
    """
    process = started()
    assert process.stdin
    assert process.stdout
    try:
        print(json.dumps([module, expression]), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended: {process.wait()}")
    except BaseException:  # a test that ran out of time must not leave its answer to the next one
        process.kill()
        started.cache_clear()
        raise
    answer = json.loads(line)
    assert "value" in answer, answer["error"]
    return answer["value"]


@cache
def started() -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from tests.support.uninterpreted import serve; serve()"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)


def serve() -> None:
    """In the other process: answer each line of input until there is no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the expressions print is no answer
    for line in sys.stdin:
        module, expression = json.loads(line)
        try:
            answer = json.dumps({"value": eval(expression, {"t": importlib.import_module(module)})})
        except Exception:
            answer = json.dumps({"error": traceback.format_exc()})
        print(answer, file=answers, flush=True)
