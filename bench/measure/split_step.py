"""`decodebench step --device cpu --tp N`: a step whose model is split over N processes of this host.

Each process has its share of the cores, of the heads and of the FFN's columns (`kernels/decode_step/split.py`). gloo
adds up. All start a step together, and the slowest rank's time counts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from bench import machine
from bench.errors import BadRequest
from bench.measure.step_parts import OP, busy_note, require_memory
from bench.predict.step_request import Request
from bench.units import percent
from kernels.op import Target, discover

STEPS, WARM = 20, 3
LIMIT_S = 300.0
"""How long a rank waits for the others. They compile their kernels first."""


@dataclass(frozen=True, kw_only=True)
class SplitStep:
    """Medians over the steps, in seconds; of each step the slowest rank."""

    model: str
    part: str
    batch: int
    context: int
    ranks: int
    cores: int
    """Of each rank."""
    seconds: float
    reduce_seconds: float
    """In all-reduces, waiting for the other ranks included."""
    reduces: int
    tokens: tuple[int, ...]
    """What the step chose."""
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        asked = f"{self.model}, batch {self.batch:,}, {self.context:,} tokens"
        where = f"{self.ranks} ranks with {self.cores} of the cores of {self.part} each"
        share = percent(self.reduce_seconds / self.seconds)
        return [
            f"{asked}, over {where}: {self.seconds * 1e3:,.2f} ms a step, measured",
            f"{self.reduces} all-reduces by gloo: {self.reduce_seconds * 1e3:,.2f} ms, {share} of the step, with the "
            "time that ranks wait for each other",
            *self.notes,
        ]


def measure_split(request: Request) -> SplitStep:
    """Raises `BadRequest` for a model that is not split, too few cores, and a rank that fails."""
    machine.let_waiting_threads_sleep()
    target, ranks = machine.detect("cpu"), request.devices
    case = replace(request, devices=1).case
    try:
        case.share_of(ranks)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if target.sm_count < ranks:
        raise BadRequest(f"--tp {ranks}: each rank needs a core, and {target.sm_count} are usable")
    require_memory(case, target)
    found = run_ranks({"case": case.as_dict()}, ranks)
    slowest = [max(each) for each in zip(*(rank["seconds"] for rank in found), strict=True)]
    reduce = [statistics.median(rank["reduce_seconds"]) for rank in found]
    return SplitStep(
        model=case.model,
        part=target.name,
        batch=case.B,
        context=case.T,
        ranks=ranks,
        cores=target.sm_count // ranks,
        seconds=statistics.median(slowest),
        reduce_seconds=statistics.mean(reduce),
        reduces=2 * case.measured_layers,
        tokens=tuple(found[0]["tokens"]),
        notes=busy_note(target),
    )


def run_ranks(order: dict[str, Any], ranks: int) -> list[dict[str, Any]]:
    """What each rank says. Raises `BadRequest` with the last line of one that failed."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // ranks)
    with tempfile.TemporaryDirectory(prefix="decodebench-step-") as folder:
        processes = []
        for rank in range(ranks):
            mine = [cores[(rank * each + i) % len(cores)] for i in range(each)]
            said = json.dumps(order | {"rank": rank, "ranks": ranks, "cores": mine, "folder": folder})
            command = [sys.executable, "-m", "bench.measure.split_step", said]
            log = (Path(folder) / f"{rank}.log").open("wb")
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
            log.close()
        try:
            for rank, process in enumerate(processes):
                if process.wait(timeout=2 * LIMIT_S):
                    lines = (Path(folder) / f"{rank}.log").read_text(errors="replace").strip().splitlines()
                    raise BadRequest(f"rank {rank} of {ranks} failed: {lines[-1] if lines else process.returncode}")
        except subprocess.TimeoutExpired:
            raise BadRequest(f"a rank of {ranks} did not end within {2 * LIMIT_S:.0f} s") from None
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(ranks)]


def serve(order: dict[str, Any]) -> None:
    """The life of one rank: it prepares its share, takes steps together with the others, and writes what it saw."""
    os.sched_setaffinity(0, order["cores"])
    machine.let_waiting_threads_sleep()
    import torch
    from torch import distributed

    torch.set_num_threads(len(order["cores"]))
    rank, ranks, folder = order["rank"], order["ranks"], Path(order["folder"])
    store = distributed.FileStore(str(folder / "store"), ranks)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=LIMIT_S))
    op = discover()[OP]
    case = op.case_from_dict(order["case"])
    spent = [0.0]

    def reduce(y: torch.Tensor) -> None:
        start = time.perf_counter()
        distributed.all_reduce(y)
        spent[0] += time.perf_counter() - start

    target = Target(kind="cpu", name="cpu", sm_count=len(order["cores"]))
    inputs, launch = case.of_rank(op.inputs(case, "cpu", 0), rank, ranks, target, reduce)
    seconds, reduces = [], []
    for step in range(WARM + STEPS):
        distributed.barrier()
        spent[0], start = 0.0, time.perf_counter()
        logits = launch()
        if step >= WARM:
            seconds.append(time.perf_counter() - start)
            reduces.append(spent[0])
    said = {"seconds": seconds, "reduce_seconds": reduces, "tokens": inputs["next"].tolist()}
    if order.get("logits"):
        said["logits"] = logits.float().tolist()
    (folder / f"{rank}.json").write_text(json.dumps(said))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
