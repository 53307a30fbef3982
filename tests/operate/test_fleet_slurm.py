"""Jobs of Slurm, by a pretended one: `sbatch`, `srun`, `sacct` and `scancel` are small programs on the path."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.measure.schedule import Request
from bench.operate.fleet import engines
from bench.operate.fleet.node import Event, Task
from tests.support.fleets import wait_for

pytestmark = pytest.mark.usefixtures("importable")

TASK = Task(request=Request(device="cpu", suite="smoke"), cpu_shares=1)

PROGRAMS = {
    # the job starts when somebody makes the file `go`, and its script runs with what Slurm tells a job
    "sbatch": """\
cp "$1" "$FAKE_SLURM/script"
echo PENDING > "$FAKE_SLURM/state"
(
  until [ -e "$FAKE_SLURM/go" ]; do sleep 0.05; done
  echo RUNNING > "$FAKE_SLURM/state"
  until [ -e "$FAKE_SLURM/end" ]; do sleep 0.05; done
  export SLURM_JOB_ID=17 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
  if bash "$FAKE_SLURM/script"; then echo COMPLETED > "$FAKE_SLURM/state"; else echo FAILED > "$FAKE_SLURM/state"; fi
) > /dev/null 2>&1 &
echo "Submitted batch job 17"
""",
    "srun": """\
while [ "${1#-}" != "$1" ]; do
  case "$1" in --output|--error) shift 2 ;; *) shift ;; esac
done
exec "$@"
""",
    "sacct": """\
echo >> "$FAKE_SLURM/asked"
echo "JobID|State|NodeList"
echo "17|$(cat "$FAKE_SLURM/state")|node-7"
""",
    "scancel": """\
echo "$@" > "$FAKE_SLURM/cancelled"
echo "CANCELLED by 0" > "$FAKE_SLURM/state"
""",
}


def two_events(task: Task) -> list[Event]:
    """What a job does here instead of measuring."""
    return [{"kind": "node", "host": "node-7", "shares": []}, {"kind": "at", "asked": task.cpu_shares}]


def fails(task: Task) -> list[Event]:
    raise RuntimeError("this node has no driver")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the pretended Slurm."""
    slurm_module = pytest.importorskip("submitit.slurm.slurm")
    folder = tmp_path / "slurm"
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(engines, "STATE_S", 0.1)
    monkeypatch.setattr(engines, "all_events", two_events)
    # one watcher asks for all jobs of a process; it starts anew, as in a new process
    monkeypatch.setattr(slurm_module.SlurmJob, "watcher", slurm_module.SlurmInfoWatcher(delay_s=600))
    return folder


def started(engine: engines.Slurm) -> tuple[Iterator[Event], threading.Thread, list[Event]]:
    """A node's events, and a thread that waits for the first of them."""
    (name,) = engine.nodes()
    events, heard = iter(engine.run(name, TASK)), []
    thread = threading.Thread(target=lambda: heard.append(next(events)), daemon=True)
    thread.start()
    wait_for(lambda: (Path(engine.folder) / "slurm" / "asked").exists())
    return events, thread, heard


def engine_at(slurm: Path, **options: object) -> engines.Slurm:
    return engines.Slurm(folder=slurm.parent, **options)  # type: ignore[arg-type]


def test_a_job_in_the_queue_has_not_started_and_one_that_runs_has(slurm: Path) -> None:
    events, thread, heard = started(engine_at(slurm))
    asked = len((slurm / "asked").read_text())
    wait_for(lambda: len((slurm / "asked").read_text()) >= asked + 3)
    assert heard == [], "it waits in the queue"
    (slurm / "go").touch()
    thread.join(60)
    assert heard == [{"kind": "start"}], "it runs, and has sent nothing yet"
    (slurm / "end").touch()
    assert list(events) == two_events(TASK)


def test_slurm_is_asked_once_for_all_jobs_that_wait(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "STATE_S", 1000.0)
    engine = engine_at(slurm)

    class Job:
        asked, state = 0, "PENDING"

        def get_info(self, mode: str) -> None:
            self.asked += 1

        def done(self) -> bool:
            return False

    jobs = [Job() for _ in range(100)]
    assert not any(engine.has_started(job) for job in jobs)
    assert sum(job.asked for job in jobs) == 1


def test_a_job_that_has_not_started_is_taken_out_of_the_queue(slurm: Path) -> None:
    engine = engine_at(slurm)
    _, thread, heard = started(engine)
    engine.close()
    assert (slurm / "cancelled").read_text().split() == ["17"]
    thread.join(60)
    assert heard == [{"kind": "start"}], "nobody waits for it any more"


def test_a_job_that_fails_says_why(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "all_events", fails)
    (slurm / "go").touch()
    (slurm / "end").touch()
    with pytest.raises(Exception, match="this node has no driver"):
        list(engine_at(slurm).run("job0", TASK))


def test_the_script_asks_slurm_for_what_was_asked_for(slurm: Path) -> None:
    engine = engine_at(slurm, partition="gpus", gpus_per_node=4, minutes=90, pinned={"job0": "node-7"})
    (slurm / "go").touch()
    (slurm / "end").touch()
    assert list(engine.run("job0", TASK))[1:] == two_events(TASK)
    script = (slurm / "script").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S*)$", script, re.MULTILINE))
    wanted = {
        "partition": "gpus",
        "gpus-per-node": "4",
        "time": "90",
        "nodelist": "node-7",
        "nodes": "1",
        "ntasks-per-node": "1",
    }
    assert asked.items() >= wanted.items()
    assert "#SBATCH --exclusive\n" in script, "without a value: its values are user, mcs and topo"
