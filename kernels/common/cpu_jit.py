"""What CPU kernels share: compiling by Numba when a kernel is first used, threads, views of tensors, and their `Impl`.

A kernel is written as a Numba function, but nothing here imports Numba before a kernel is called. Without Numba every
kernel is refused, and all else works.

Compiled code is kept in `<cache>/decodebench/numba-<version>-<digest of these sources>`, where `<cache>` is
`$NUMBA_CACHE_DIR`, `$XDG_CACHE_HOME` or `~/.cache`, whichever is set first. Numba itself looks only at the file of a
function, not at what the function calls, so the digest is in the path: a change anywhere compiles anew. The version is
there too, because an index that another version wrote is thrown away. The `KEPT` directories that were used last are
kept, and those of the last day. Where that directory cannot be written, kernels
are compiled again in every process, which takes some seconds for each operation.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels.op import CaseT, Impl, Inputs, Launch, Stage, Target, Work, anywhere, needs

if TYPE_CHECKING:
    import numpy as np
    import torch

FAST_MATH = {"reassoc", "contract", "nsz"}
"""What the compiler may do to sums: reorder and fuse them. It may not assume that there is no NaN and no Inf, so that
poison shows."""


class Lazy:
    """A function that `make` turns into a Numba function when it is first called, or when a caller is compiled."""

    def __init__(self, function: Callable[..., Any], make: Callable[[Callable[..., Any]], Any]) -> None:
        self.function, self.make = function, make
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    @cache  # noqa: B019 (kernels live as long as their modules)
    def made(self) -> Any:
        """The Numba function. Callees are made first, and stand in for themselves in the function's module."""
        names = getattr(self.function, "__globals__", {})
        for name, value in list(names.items()):
            if isinstance(value, Lazy) and value is not self and name in self.function.__code__.co_names:
                names[name] = value.made()
        return self.make(self.function)

    def __call__(self, *arguments: Any) -> Any:
        return self.made()(*arguments)


def jit(function: Callable[..., Any]) -> Any:
    """A function of one thread, for use in kernels."""
    return Lazy(function, partial(compiled, parallel=False))


def kernel(function: Callable[..., Any]) -> Any:
    """A function with `prange` over threads."""
    return Lazy(function, partial(compiled, parallel=True))


def intrinsic(function: Callable[..., Any]) -> Any:
    """A function that writes LLVM's code itself: `numba.extending.intrinsic`."""

    def make(function: Callable[..., Any]) -> Any:
        from numba.extending import intrinsic

        return intrinsic(function)

    return Lazy(function, make)


def parallel_range(function: Any) -> Any:
    from numba import prange

    return prange


prange: Any = Lazy(range, parallel_range)
"""`numba.prange`, in kernels. Its index is a uint64 in the loop and an int64 around it: who hands it on to a function
gives `np.int64(index)`, or the function is compiled for both."""


def compiled(function: Callable[..., Any], *, parallel: bool) -> Any:
    from numba import config, njit

    before, config.CACHE_DIR = config.CACHE_DIR, cache_directory()
    try:
        return njit(
            function,
            parallel=parallel,
            fastmath=FAST_MATH,
            error_model="numpy",
            cache=bool(config.CACHE_DIR),
        )
    finally:
        config.CACHE_DIR = before


KEPT = 4
DAY_S = 86400


def remove_old(ours: Path) -> None:
    """Delete the compiled code of sources that have not been used for a day, but not the `KEPT` used last."""
    by_use = sorted(((path.stat().st_mtime, path) for path in ours.glob("numba-*")), reverse=True)
    for used, path in by_use[KEPT:]:
        if used < time.time() - DAY_S:
            shutil.rmtree(path, ignore_errors=True)


@cache
def cache_directory() -> str:
    """Where compiled code is kept, empty where nothing can be written."""
    given = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("cpu_*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    try:
        ours = (Path(given) if given else Path.home() / ".cache") / "decodebench"
        path = ours / f"numba-{version('numba')}-{digest.hexdigest()[:12]}"
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            os.utime(path)
        remove_old(ours)
        return str(path)
    except (OSError, RuntimeError):
        return ""


STORED = {"fp32": "f4", "fp16": "i2", "bf16": "u2"}
"""The types in which kernels load elements: see `cpu_lanes`."""


def array(tensor: torch.Tensor) -> np.ndarray:
    """The elements of a contiguous tensor on the host, flat, in the type in which kernels load them: see `cpu_lanes`.

    Writing to one writes to the other. Raises ValueError for a tensor that is not contiguous.
    """
    import torch

    if not tensor.is_contiguous():
        raise ValueError(f"a tensor with strides {tensor.stride()}: kernels take contiguous ones")
    flat, stored = tensor.detach().reshape(-1), tensor.dtype
    if stored == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(STORED["bf16"])
    if stored == torch.float16:
        return flat.view(torch.int16).numpy()
    if stored == torch.float8_e4m3fn:
        return flat.view(torch.uint8).numpy()
    return flat.numpy()


def spread(tensor: torch.Tensor) -> np.ndarray:
    """`array` of all from the first element of a tensor to its last, with what lies between its rows."""
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return array(tensor.as_strided((last + 1,), (1,)))


def threads(target: Target) -> int:
    """How many threads share the work of a kernel: one for each usable core, as torch has."""
    import numba

    return max(1, min(target.sm_count, numba.config.NUMBA_NUM_THREADS))


def needs_cpu(case: Any, target: Target) -> str | None:
    """The `supports` that all CPU kernels share."""
    if target.kind != "cpu":
        return "needs a host: it runs on the host's own cores"
    return needs("numba")


def needs_whole_vectors(name: str, width: int) -> str | None:
    """A refusal of rows that do not fill vectors of 16."""
    return f"needs {name} in multiples of 16, not {width}" if width % 16 else None


def numba_version() -> str:
    import numba

    return f"numba {numba.__version__}"


def cpu_impl(
    *,
    name: str = "numba",
    prepare: Callable[[CaseT, Inputs, Target], Launch],
    stages: Callable[[CaseT, Target], Sequence[Stage]],
    supports: Callable[[CaseT, Target], str | None] = anywhere,
    parts: Callable[[CaseT, Target], Sequence[tuple[str, str, Any, Impl[Any]]]] | None = None,
) -> Impl[CaseT]:
    """An `Impl` of ours for hosts. `supports` adds its refusals to those of every CPU kernel.

    `prepare` launches once, so that compiling is never in a time.
    """

    def all_supports(case: CaseT, target: Target) -> str | None:
        return needs_cpu(case, target) or supports(case, target)

    def warm(case: CaseT, inputs: Inputs, target: Target) -> Launch:
        import numba

        numba.set_num_threads(threads(target))
        launch = prepare(case, inputs, target)
        launch()
        return launch

    return Impl(
        name=name, stages=stages, prepare=warm, supports=all_supports, parts=parts, version=numba_version, ours=True
    )


def on_fma(work: Work) -> Work:
    """The same work with all FLOPs on the ordinary arithmetic pipe, in fp32."""
    flops = {"fma_fp32": work.total_flops} if work.total_flops else {}
    return Work(flops=flops, bytes_read=work.bytes_read, bytes_written=work.bytes_written)
