"""The contract between what is measured (`kernels`) and how it is measured (`bench`). Standard library only.

An operation is a folder of `kernels/`. Its `op.py` holds one `OP = Op(...)`; every other module of the folder holds
`IMPLS = (Impl(...), ...)`. `discover()` finds the first, `implementations()` the second: nothing is registered by hand.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from kernels.common import fields, tuned
from kernels.work import Stage as Stage
from kernels.work import Work as Work
from kernels.work import total as total

if TYPE_CHECKING:
    import torch

    from kernels.launch import Built

SUITES = ("smoke", "quick", "full")
"""Measured suites, sized for two minutes of a CPU (`smoke`), 3 and 10 minutes of an H100 (`quick`, `full`)."""

SWEEPS = "sweeps"
"""One more, which a user asks for: cases that differ in one field, of operations that have such."""

Inputs = dict[str, Any]
"""Named tensors (and a few plain values) that one launch reads."""

Launch = Callable[[], "torch.Tensor"]
"""Zero arguments, no allocation, capturable in a CUDA graph; returns the output tensor.

On a host, a launch of several ranks may have an attribute `seconds`: those of each rank in the last call, without the
time in which the ranks meet. The slowest rank's are the time of that call then."""

Role = Literal["ceiling", "decode", "contrast"]
"""What an operation is measured for. `ceiling`: predictions are made from its times, so it runs first. `decode`: it is
a part of a decode step. `contrast`: it is shown beside decode, and no statement about decode uses it."""

Config = tuple[tuple[str, int], ...]
"""Fields of an implementation's `Plan`, and the values that replace the reasoned ones."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an implementation is to run, as far as a `plan` may look.

    `kind` is `cuda`, `cpu` (torch on the host) or `interpreter` (Triton kernels interpreted on the host, for
    correctness only). `sm` is the compute capability times ten (90 for Hopper), 0 on a host. `config` holds the fields
    that a plan must use instead of its own values. The offline tuner sets it. Where it is None, as in every measured
    run, an `Impl` with a `Tuning` fills in what was tuned for it on this part.
    """

    kind: Literal["cuda", "cpu", "interpreter"]
    name: str
    sm: int = 0
    sm_count: int = 1
    l2_bytes: int = 0
    smem_per_sm: int = 0
    config: Config | None = None

    @property
    def overrides(self) -> dict[str, int]:
        """`config` as fields of a plan; empty where nothing replaces the reasoned values."""
        return dict(self.config or ())

    @property
    def device(self) -> str:
        """The torch device that tensors live on."""
        return "cuda" if self.kind == "cuda" else "cpu"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape of one operation; every op derives its own. Fields are plain values, so that a record can hold them.

    Raises ValueError for a field that holds what its type does not allow (see `kernels/common/fields.py`). An op that
    knows of combinations that cannot be adds its own `__post_init__`, which calls this one first.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {}
    """What some fields of a plain case hold: no window, no draft, equal lengths. The other fields may hold anything."""

    model: str = ""
    """The public model whose layer this is, `""` for a synthetic shape."""

    def __post_init__(self) -> None:
        if reason := fields.wrong(type(self), vars(self)):
            raise ValueError(reason)

    @property
    def id(self) -> str:
        """Short, unique within the op, e.g. `B8-Hq64-Hkv8-D128-T4096-page16-bf16`. `model` is not part of it."""
        raise NotImplementedError

    @property
    def precision(self) -> str:
        """The element types of the case, each once: `bf16`, `bf16 int4`."""
        return precision(self.as_dict())

    @property
    def is_plain(self) -> bool:
        """Can this case stand for the operation in an ordinary decode step?"""
        return is_plain(self.as_dict(), self.PLAIN)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


CaseT = TypeVar("CaseT", bound=Case)
"""The case type of an operation. `Op`, `Tuning` and `Impl` are generic over it."""

TYPE_FIELDS = ("dtype", "weights", "activations", "kv", "state")
"""Fields of cases that name an element type. Where one is empty or absent, `dtype` stands for it."""


def stored_as(case: Mapping[str, Any], field: str) -> str:
    """The element type that a recorded case has in one of `TYPE_FIELDS`."""
    return str(case.get(field) or case["dtype"])


def precision(case: Mapping[str, Any]) -> str:
    """`Case.precision` of a recorded case; empty where the case has no element types."""
    return " ".join(dict.fromkeys(str(case[field]) for field in TYPE_FIELDS if case.get(field)))


def is_plain(case: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    """`Case.is_plain` of a recorded case. A field that the record lacks counts as plain."""
    return all(case.get(name, value) == value for name, value in plain.items())


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest accepted errors against the fp32/fp64 reference; the metrics are defined in `common/compare.py`."""

    max_rel: float
    rms_rel: float
    why: str = ""
    slope: float | None = None
    """How far `slope` may be from 1, beyond its own noise; None: any value, also of the bias."""
    bias: float | None = None
    """How far `bias` may be from 0, beyond its own noise; None: as far as `slope` from 1."""
    roundings: int | None = None
    """Roundings to the output's type in series, that of the output among them, as far as their noise is known."""
    each_sequence: bool = False
    """Is each sequence, an index of the first dimension, judged by its own slope and noise too?"""
    differing: float | None = None
    """Of codes, which are right or wrong: the share that may differ from the reference at all; two more may."""


@dataclass(frozen=True)
class Result:
    """One of several results in an output, which `of` takes out of it once it is decoded, and out of the reference. The
    gate judges it by itself too, so that the others can't hide its errors."""

    name: str
    of: Callable[[torch.Tensor], torch.Tensor]
    tolerance: Tolerance


EXACT = Tolerance(max_rel=0.0, rms_rel=0.0, why="what is not written stays as it is")
"""Of what a launch must leave alone."""


def poison_with_nan(case: Case, inputs: Inputs, output: torch.Tensor) -> None:
    """Overwrite the whole output, so that the check sees every element that a launch leaves unwritten."""
    output.fill_(float("nan") if output.dtype.is_floating_point else -(2**7) + 1)


def undivided(case: Case, inputs: Inputs) -> Sequence[Result]:
    """An output is one result."""
    return ()


def as_stored(case: Case, output: torch.Tensor) -> torch.Tensor:
    """The output as it is, where it holds the numbers that the reference gives."""
    return output


@dataclass(frozen=True, kw_only=True)
class Op(Generic[CaseT]):
    """One operation. `reference` computes in fp32 or fp64 torch and never calls what it checks.

    - `cases(suite)`: the shapes of `smoke`, `quick`, `full`, and of `test` (small, edgy, for the interpreter). `smoke`
      has only what shows whether decode is memory-bound on a host; other operations have no case there
    - `inputs(case, device, seed)`: fresh tensors on `cuda`, `cpu` or `meta` (shapes only, for code generation); the
      same seed gives the same values, different seeds differ
    - `work(case)`: the compulsory minimum that any implementation must read, write and compute
    - `volatile`: names of inputs that change from call to call; nothing derived from them may outlive a launch
    """

    name: str
    title: str
    """Its name in headlines: `GEMV`, `attention`."""
    role: Role
    about: str
    formula: str
    case_type: type[CaseT]
    cases: Callable[[str], Sequence[CaseT]]
    inputs: Callable[[CaseT, str, int], Inputs]
    reference: Callable[[CaseT, Inputs], torch.Tensor]
    work: Callable[[CaseT], Work]
    tolerance: Callable[[CaseT], Tolerance]
    volatile: tuple[str, ...]
    poison: Callable[[CaseT, Inputs, torch.Tensor], None] = poison_with_nan
    decoded: Callable[[CaseT, torch.Tensor], torch.Tensor] = as_stored
    """What an output stands for, where it stores something else: codes and their scales, or numbers of experts. The
    correctness gate compares this with the reference."""
    results: Callable[[CaseT, Inputs], Sequence[Result]] = undivided
    """The results in an output, where it holds several."""
    smaller: Callable[[CaseT, int], CaseT | None] | None = None
    """`smaller(case, n)`: about 1/n of a case, with the same inner loops over fewer columns, tokens or sequences. A
    host times it in the caches of its cores (`bench/measure/core.py`). None where a case has none."""
    sweeps: Callable[[], Sequence[CaseT]] = tuple
    """The cases of the suite `SWEEPS`."""
    link_bytes: Callable[[CaseT], int] | None = None
    """Bytes that one part at least gets from others over its link; None for an operation that one part does alone."""

    @property
    def is_ceiling(self) -> bool:
        return self.role == "ceiling"

    def of_suite(self, suite: str) -> Sequence[CaseT]:
        """The cases of one of `SUITES`, or of `SWEEPS`."""
        return self.sweeps() if suite == SWEEPS else self.cases(suite)

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of a case's fields; `dataclasses.MISSING` for those that every case must give."""
        return {f.name: f.default for f in dataclasses.fields(self.case_type)}

    def case_from_dict(self, given: Mapping[str, Any]) -> CaseT:
        """The case that these fields describe. Raises ValueError for a field that is unknown, absent or wrong."""
        known = self.defaults
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{self.name} has no field {unknown[0]}, it has {', '.join(known)}")
        if absent := [n for n, default in known.items() if default is dataclasses.MISSING and n not in given]:
            raise ValueError(f"{self.name} lacks the field {absent[0]}")
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return self.case_type(**plain)


def anywhere(case: Case, target: Target) -> str | None:
    """The `supports` of an implementation that runs on every target."""
    return None


@dataclass(frozen=True, kw_only=True)
class Tuning(Generic[CaseT]):
    """What the offline tuner may try for one implementation, and where it keeps the result.

    - `op`: the operation's name; its `tuned.json` holds what was found
    - `shape_class(case)`: cases of one class share a configuration, such as `read` or `B1-2 bf16`
    - `candidates(case, target)`: configurations to try beside the reasoned one, which is always in the race; each
      holds only the fields that differ from it
    """

    op: str
    shape_class: Callable[[CaseT], str]
    candidates: Callable[[CaseT, Target], Iterable[Mapping[str, int]]]


@dataclass(frozen=True, kw_only=True)
class Impl(Generic[CaseT]):
    """One implementation of one operation.

    - `supports(case, target)`: None, or the reason why not, in words a user can act on
    - `stages(case, target)`: what it really moves and computes, one `Stage` per kernel launched
    - `prepare(case, inputs, target)`: does everything that may allocate or that is computed once; returns the `Launch`
    - `build(case, inputs, target)`: for Triton kernels only, the `kernels.launch.Built` that `prepare` runs. Code
      generation compiles what `build` makes of `meta` inputs, so what is inspected is what runs.

    With a `tuning`, these four functions get a target whose `config` is settled: what the caller asks for, or what was
    tuned for this implementation and part, or empty. So no implementation gets a configuration tuned for another one.
    """

    name: str
    stages: Callable[[CaseT, Target], Sequence[Stage]]
    prepare: Callable[[CaseT, Inputs, Target], Launch]
    supports: Callable[[CaseT, Target], str | None] = anywhere
    build: Callable[[CaseT, Inputs, Target], Built] | None = None
    version: Callable[[], str] | None = None
    tuning: Tuning[CaseT] | None = None
    parts: Callable[[CaseT, Target], Sequence[tuple[str, str, Any, Impl[Any]]]] | None = None
    """Of a launch that runs several operations: the name of each part, its operation, case and implementation."""
    by_torch_compile: bool = False
    """True if `prepare` has torch.compile build it, which takes seconds for each shape."""
    ours: bool = False
    """True for an implementation written here, False for a peer from a library."""

    def __post_init__(self) -> None:
        for name, function in self._with_config(self._settled).items() if self.tuning else ():
            object.__setattr__(self, name, function)

    def _settled(self, case: CaseT, target: Target) -> Config:
        assert self.tuning
        return tuple(tuned.overrides(self.tuning.op, self.name, self.tuning.shape_class(case), target).items())

    def configured(self, config: Config) -> Impl[CaseT]:
        """The same implementation with a plan that must use `config`; its name tells the configuration."""
        name = f"{self.name} {config_text(config)}"
        return dataclasses.replace(self, name=name, tuning=None, **self._with_config(lambda case, target: config))

    def _with_config(self, config: Callable[[CaseT, Target], Config]) -> dict[str, Any]:
        """The functions that take a target, wrapped: each gets a target that holds `config(case, target)`."""

        def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(case: CaseT, *inputs_and_target: Any) -> Any:
                *inputs, target = inputs_and_target
                return function(case, *inputs, dataclasses.replace(target, config=config(case, target)))

            return call

        functions = {name: getattr(self, name) for name in ("stages", "prepare", "supports", "build")}
        return {name: wrapped(function) for name, function in functions.items() if function}


def config_text(config: Config) -> str:
    """`num_stages=3 num_warps=8`; `default` for an empty configuration."""
    return " ".join(f"{name}={value}" for name, value in config) or "default"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A module of an op's folder that could not be imported, and why. It is shown, never dropped."""

    module: str
    reason: str


@cache
def discover() -> dict[str, Op[Any]]:
    """All operations by name, ceilings first. Imports only the `op.py` files: no torch, no triton."""
    root = Path(__file__).parent
    names = sorted(p.parent.name for p in root.glob("*/op.py"))
    ops = [importlib.import_module(f"kernels.{name}.op").OP for name in names]
    return {op.name: op for op in sorted(ops, key=lambda op: (not op.is_ceiling, op.name))}


def recorded_case(op_name: str, case: Mapping[str, Any]) -> dict[str, Any]:
    """A case as a record holds it, with the defaults of fields that are newer than the record.

    Raises ValueError for a field that is wrong, or that is absent and has no default. Fields that no longer exist stay,
    and a case of an operation that is not known here is taken as it is.
    """
    op = discover().get(op_name)
    if op is None:
        return dict(case)
    found = op.defaults | dict(case)
    if absent := [name for name, value in found.items() if value is dataclasses.MISSING]:
        raise ValueError(f"lacks the field {absent[0]}")
    if reason := fields.wrong(op.case_type, found):
        raise ValueError(reason)
    return found


@cache
def implementations(op_name: str) -> tuple[tuple[Impl[Any], ...], tuple[Missing, ...]]:
    """All implementations of an op, ours first, and the modules that could not be imported here."""
    found: list[Impl[Any]] = []
    missing: list[Missing] = []
    for module in pkgutil.iter_modules([str(Path(__file__).parent / op_name)]):
        if module.name == "op":
            continue
        try:
            loaded = importlib.import_module(f"kernels.{op_name}.{module.name}")
        except ImportError as error:
            missing.append(Missing(module=module.name, reason=str(error)))
            continue
        found.extend(getattr(loaded, "IMPLS", ()))
    return tuple(sorted(found, key=lambda impl: not impl.ours)), tuple(missing)


def torch_version() -> str:
    """The `Impl.version` of kernels that come with torch."""
    import torch

    return f"torch {torch.__version__}"


def needs(package: str) -> str | None:
    """None if `package` can be imported, else a refusal that names it."""
    return None if importlib.util.find_spec(package) else f"needs the package {package}, which is not installed"


def needs_triton_target(case: Case, target: Target) -> str | None:
    """The `supports` that all Triton kernels share: they need a GPU of sm_80 or later, or the interpreter."""
    if target.kind == "cpu":
        return "needs an NVIDIA GPU (Triton compiles for GPUs; on a CPU it is only interpreted, for the tests)"
    if target.kind == "cuda" and target.sm < 80:
        return f"needs sm_80 or later, this part is sm_{target.sm}"
    return None
