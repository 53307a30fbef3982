"""`python -m bench`. A missing package becomes one line that names it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. A missing module of our own is our fault and keeps its traceback."""
    try:
        from bench.cli import main as run

        run()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "bench", "kernels"):
            raise
        print(
            f"decodebench: the package {missing!r} is not installed; from the repository's root: pip install -e .",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
