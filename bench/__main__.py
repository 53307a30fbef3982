"""`python -m bench`. A missing package becomes one line that names it."""

from __future__ import annotations

import importlib.util
import sys
from typing import NoReturn


def main() -> None:
    """Run the command line. A missing module of our own is our fault and keeps its traceback."""
    if importlib.util.find_spec("kernels.op") is None:
        fail(
            "the package `kernels` that Python finds is another one (Hugging Face has one of that name); "
            "run from decodebench's own environment: uv run decodebench"
        )
    try:
        from bench.cli import main as run

        run()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "bench", "kernels"):
            raise
        fail(f"the package {missing!r} is not installed; from the repository's root: pip install -e .")


def fail(message: str) -> NoReturn:
    print(f"decodebench: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
