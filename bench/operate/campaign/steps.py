"""One command for a rented hour: it asks everything of one part, and begins with what decides most.

    doctor      is the machine fit? in every call, because the next may reach another machine
    gate        every implementation on the small edgy cases and on one of every kind, in several processes
    tune        configurations that are not committed yet, a minute of each call
    measure     one run of the suite: ceilings, then every operation's cases, peers interleaved
    selfcheck   our clock beside others
    counters    from ncu, into the run's records
    measure     once more, with whatever time is left

A call takes `--budget`. Each step gets a share of the time that is left, is cut off when that is used up, and goes on
in the next call with the same directory, where `campaign.json` says what is finished. A call that is killed loses the
case in flight. What is to be brought home is at most `MAX_FILES` files of under `MAX_BYTES`, in two levels of folders:

    campaign.json  gate.jsonl  tuned.json  summary.md         the steps, and what each found
    <device>/<run>/records.jsonl  report.md  report.html      as under reports/; `report` draws the figures at home

The process of the campaign never loads torch. Whatever does is a child of it.
"""

from __future__ import annotations

import gzip
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import machine, report
from bench.errors import BadRequest, require
from bench.files import Lock, replacing, write_text
from bench.inspection import counters
from bench.measure import runner
from bench.measure.counting import count_into
from bench.measure.schedule import HANG_S, outdated
from bench.operate.campaign import earlier, gate, tuning
from bench.operate.campaign.child import Child
from bench.operate.campaign.outcome import MAX_BYTES, SUMMARY, CampaignOutcome, Progress, summary
from bench.records import FILE, now
from bench.run import load_run
from kernels.common import tuned
from kernels.op import SUITES

STATE = "campaign.json"
PACKED = f"{FILE}.gz"
OVERRUN_S = 20.0
"""A run may take so much longer than its budget, which begins when the worker is up: a case in flight is finished."""

SECOND_START_S = 120.0
"""Measuring is not begun again in a call with less time left: the start of another worker would take half of it."""

FINISH_S = 20.0
"""Seconds of a call that are kept back for the report and the summary."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a campaign is to do. `catalogue` and `hang_s` mean what they mean in `runner.Request`."""

    device: str = "cuda"
    suite: str = "full"
    budget_s: float = 540.0
    """Seconds of this call. The job in flight at its end may take some more."""
    skip: tuple[str, ...] = ()
    """Names of steps that are left out for good."""
    case: str = ""
    cap_s: float | None = None
    hang_s: float = HANG_S
    catalogue: str = "kernels.op"
    argv: tuple[str, ...] = ()
    root: Path = tuned.ROOT
    """Where `<op>/tuned.json` is."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step gets `share` of the time that is left, at most `most_s`. It is not begun if that is less than `least_s`,
    on a CPU `least_cpu_s`. It does what it can in time."""

    name: str
    share: float
    least_s: float
    least_cpu_s: float = 1.0
    most_s: float = math.inf
    act: Callable[[Campaign, Progress, float], None] | None = None
    """What does it; None: the campaign's method of its name."""


def run(request: Request, out: Path | None, display: runner.Display) -> CampaignOutcome:
    """Go through the steps that no earlier call has finished. BadRequest for what the user can mend."""
    if out is None:
        raise BadRequest("--out names the directory where everything goes")
    require("step", request.skip, NAMES)
    require("suite", [request.suite], SUITES)
    if request.device not in ("auto", "cuda", "cpu"):
        raise BadRequest(f"device {request.device!r} is unknown: choose auto, cuda or cpu")
    return go_through(Campaign(request, out, display))


def go_through(campaign: Campaign) -> CampaignOutcome:
    try:
        for step in (*STEPS, replace(MEASURE, least_s=SECOND_START_S)):
            campaign.go(step)
            if campaign.unfit or campaign.interrupted:
                break
    except KeyboardInterrupt:
        campaign.interrupted = True
    return campaign.finish()


class Campaign:
    """The state of a campaign, and the clock of this call. Its steps are the methods that `STEPS` name."""

    pretence: runner.Pretence | None = None
    """In a rehearsal, what takes the place of the machine."""

    def __init__(self, request: Request, directory: Path, display: runner.Display) -> None:
        self.request, self.directory, self.display = request, directory, display
        self._ends = self.clock() + request.budget_s - FINISH_S
        self.unfit = self.interrupted = False
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = "it is a file" if directory.is_file() else error.strerror or error
            raise BadRequest(f"cannot write to {directory}: {why}") from error
        self._lock = Lock(directory)
        self.asked: dict[str, Any] = {
            "device": request.device,
            "suite": request.suite,
            "case": request.case,
            "source_digest": machine.source_digest(tuned=False),
        }
        self.calls: list[dict[str, Any]] = []
        self.steps = {name: Progress() for name in NAMES}
        try:
            if (directory / STATE).exists():
                self.load()
                self.check()
        except BaseException:
            self._lock.release()
            raise
        tuning.put_back(directory / tuning.FILE, request.root)
        self.calls.append({"began": now(), "budget_s": request.budget_s, "argv": list(request.argv)})
        self.save()

    def load(self) -> None:
        """Take over the state of an earlier call. BadRequest if that had another request or other code."""
        try:
            found = json.loads((self.directory / STATE).read_text())
            asked, calls = found["asked"], found["calls"]
            steps = {name: Progress(**step) for name, step in found["steps"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadRequest(
                f"{self.directory / STATE} is damaged ({error}); bring it along again, or choose another directory"
            ) from None
        for name, value in self.asked.items():
            if asked.get(name) != value:
                raise BadRequest(
                    f"{self.directory} holds a campaign whose {name.replace('_', ' ')} is {asked.get(name)!r}, "
                    f"not {value!r}; choose another directory"
                )
        self.calls = calls
        self.steps |= steps

    def check(self) -> None:
        """Open the steps again whose results do not lie there any more."""
        measured, run = self.steps["measure"], earlier.run_that_lies(self.run_directory())
        if run:
            earlier.refuse_other_code(run, self.asked["source_digest"])
        if measured.state == "done" and (found := earlier.missing(run, measured.result)):
            self.steps["measure"] = Progress(seconds=measured.seconds, found=[found])
            self.steps["counters"] = Progress()
        if self.steps["gate"].state == "done" and not gate.verdicts(self.directory):
            self.steps["gate"] = Progress(found=["its verdicts do not lie there: checked again"])

    def save(self) -> None:
        """Write the state to a new file and rename it, so that a kill leaves either the old or the new state."""
        steps = {name: asdict(step) for name, step in self.steps.items()}
        state = {"asked": self.asked, "calls": self.calls, "steps": steps}
        write_text(self.directory / STATE, json.dumps(state, indent=1))

    def left_s(self) -> float:
        return self._ends - self.clock()

    def clock(self) -> float:
        return self.pretence.clock() if self.pretence else time.monotonic()

    def go(self, step: Step) -> None:
        """Do one step within its share of the time that is left. What it raises becomes its result."""
        progress = self.steps[step.name]
        if progress.state in ("done", "skipped") and step.name != "doctor":
            return
        if step.name in self.request.skip:
            progress.state, progress.found = "skipped", ["left out, as asked"]
            return
        limit = min(step.share * self.left_s(), step.most_s)
        least_s = step.least_s if self.request.device != "cpu" else step.least_cpu_s
        if limit < least_s:
            words = f"not begun: {max(limit, 0.0):.0f} s were left for it, it takes {least_s:.0f} at the least"
            progress.found = progress.found or [words]
            return
        self.display.note(f"{step.name}: {limit:.0f} s at the most")
        began = self.clock()
        try:
            (step.act or getattr(type(self), step.name))(self, progress, limit)
        except (BadRequest, OSError, ValueError) as error:
            progress.state, progress.found = "failed", [str(error)]
        progress.seconds = round(progress.seconds + self.clock() - began, 1)
        self.save()
        self.display.note("; ".join([f"{step.name}: {progress.state}", *progress.found[:1]]))

    def run_directory(self) -> Path | None:
        """Where the run is, once it has begun. If only the packed records were brought along, unpack them."""
        for packed in self.directory.glob(f"*/*/{PACKED}"):
            records = packed.with_name(FILE)
            if not records.exists():
                with replacing(records) as fresh:
                    fresh.write_bytes(gzip.decompress(packed.read_bytes()))
        found = [path.parent for path in sorted(self.directory.glob(f"*/*/{FILE}")) if path.stat().st_size]
        return found[-1] if found else None

    # ---- steps

    def doctor(self, progress: Progress, limit_s: float) -> None:
        self.unfit = self.look("doctor", progress, limit_s) == 2 and self.request.device != "cpu"
        if other := earlier.other_board(earlier.run_that_lies(self.run_directory()), progress.result.get("board")):
            self.unfit, progress.found = True, [other]

    def selfcheck(self, progress: Progress, limit_s: float) -> None:
        self.look("selfcheck", progress, limit_s)

    def look(self, step: str, progress: Progress, limit_s: float) -> int:
        """Keep what a child process said. Returns the exit code that the step's own command would have."""
        answer = self.ask(step, limit_s)
        progress.state, progress.found, progress.result = "done", [answer["verdict"]], answer["found"]
        return answer["exit_code"]

    def ask(self, step: str, limit_s: float, **more: Any) -> dict[str, Any]:
        """What a child process found. BadRequest with the last line that it printed, if it found nothing."""
        with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
            answer = Path(folder) / "answer.json"
            task = {"step": step, "device": self.request.device, "hang_s": self.request.hang_s, "answer": str(answer)}
            child = Child(Path(folder), task | more)
            if not child.wait(limit_s):
                raise BadRequest(f"{step} was not done after its {limit_s:.0f} s")
            if not answer.is_file():
                raise BadRequest(f"{step} ended ({child.end()})")
            return json.loads(answer.read_text())

    def gate(self, progress: Progress, limit_s: float) -> None:
        finished = gate.check_all(self.directory, self.request, limit_s)
        verdicts = gate.verdicts(self.directory)
        right = sum(v["status"] == "ok" for v in verdicts)
        progress.state = "done" if finished else "open"
        progress.found = [f"{right} of {len(verdicts)} are right" + ("" if finished else "; the time was up")]

    def tune(self, progress: Progress, limit_s: float) -> None:
        """Tune the classes of the suite's short form that have no configuration for this part.

        It may go on in a later call, after measuring began: a case whose configuration has changed since is measured
        again, so that every verdict is about one set of configurations.
        """
        if self.request.device == "cpu":
            progress.state, progress.found = "skipped", ["kernels are tuned on a GPU"]
        else:
            settled = progress.result.get("settled", [])
            answer = self.ask(
                "tune",
                limit_s,
                budget_s=min(limit_s, tuning.LIMIT_S) - tuning.START_S,
                suite=quick_of(self.request.suite),
                measured=self.request.suite,
                settled=settled,
            )
            progress.state = "open" if answer["left"] else "done"
            count = tuning.gather(self.directory / tuning.FILE, self.request.root)
            lacking = f"; still lacking: {', '.join(answer['left'])}" if answer["left"] else ""
            progress.found = [f"{count} configurations for this and other parts{lacking}"]
            if answer["tuned"] and self.steps["measure"].state == "done":
                self.steps["measure"].state = "open"
            progress.result = {
                "outcomes": [*progress.result.get("outcomes", []), *answer["lines"]],
                "settled": [*settled, *answer["settled"]],
                "tuned": [*progress.result.get("tuned", []), *answer["tuned"]],
            }

    def measure(self, progress: Progress, limit_s: float) -> None:
        asked = self.request
        retuned = tuple(map(tuple, self.steps["tune"].result.get("tuned", [])))
        request = runner.Request(
            device=asked.device,
            suite=asked.suite,
            case=asked.case,
            budget_s=max(limit_s - OVERRUN_S, 1e-6),
            cap_s=asked.cap_s,
            hang_s=min(asked.hang_s, gate.LONGEST_HANG_S),
            retuned=retuned,
            hanging=tuple((*key, f"not tried: {why}") for key, why in gate.hanging(self.directory).items()),
            catalogue=asked.catalogue,
            argv=asked.argv,
        )
        outcome = runner.run(request, self.directory, self.run_directory(), self.display, self.pretence)
        self.interrupted = outcome.interrupted
        run = load_run(outcome.directory)
        records = [*run.records, *run.repeats]
        count = {str(s): sum(r.status == s for r in records) for s in sorted({r.status for r in records})}
        unfinished = outcome.interrupted or count.get("skipped") or outdated(records, retuned)
        progress.state = "open" if unfinished else "done"
        progress.result = count
        progress.found = [", ".join(f"{n} {status}" for status, n in count.items())]

    def counters(self, progress: Progress, limit_s: float) -> None:
        """Count into the run's records, as `run --counters` does.

        A denial ends the step for good, unless the reason is that ncu is not installed beside a GPU. If the time was
        up, the next call counts what is left.
        """
        directory = self.run_directory()
        if directory is None:
            progress.found = ["waits for the measurement"]
            return
        found = count_into(directory, suite=quick_of(self.request.suite), timeout_s=limit_s)
        if isinstance(found, counters.CountersDenied):
            progress.state = "open" if self.request.device != "cpu" and counters.find_ncu() is None else "done"
            progress.found = [f"denied: {found.reason}"]
        else:
            progress.state = "done" if found.complete else "open"
            counted = sum(note["note"] == "counters" for note in load_run(directory).notes)
            late = "" if found.complete else "; the time was up"
            progress.found = [f"{counted} launches counted, {len(found.failed)} not{late}"]
            progress.result = {"failed": [f"{' '.join(key)}: {why}" for key, why in found.failed.items()]}

    # ---- the end of a call

    def finish(self) -> CampaignOutcome:
        """Write the report and the summary, and list the files to bring home."""
        try:
            return self._finish()
        finally:
            self._lock.release()

    def _finish(self) -> CampaignOutcome:
        self.save()
        tuning.gather(self.directory / tuning.FILE, self.request.root)
        directory = self.run_directory()
        (self.directory / SUMMARY).unlink(missing_ok=True)  # it is not true before it is written again
        wrong = [v for v in gate.verdicts(self.directory) if v["status"] != "ok"]
        faults = [f"gate: {v['op']} {v['case_id']} {v['impl']}: {v['status']}: {v['reason']}" for v in wrong]
        found: Sequence[str] = ()
        if directory:
            pack(directory / FILE)
            found = report.write(directory, draw=False).answer.lines()
            faulty = runner.Outcome(directory=directory, records=load_run(directory).records).faults
            faults += [f"{r.op} {r.case_id} {r.impl}: {r.status}: {r.reason or ', '.join(r.flags)}" for r in faulty]
        outcome = CampaignOutcome(
            directory=self.directory,
            run=directory,
            steps=self.steps,
            files=self.files(),
            faults=faults,
            answer=found,
            unfit=self.unfit,
            interrupted=self.interrupted,
        )
        write_text(self.directory / SUMMARY, summary(outcome, self.calls))
        return replace(outcome, files=self.files())

    def files(self) -> dict[str, int]:
        found = sorted(path for path in self.directory.rglob("*") if path.is_file())
        return {path.relative_to(self.directory).as_posix(): path.stat().st_size for path in found}


def pack(records: Path) -> None:
    """If the records are too large to be brought home, put a packed copy beside them: about a quarter of the size."""
    if records.stat().st_size >= MAX_BYTES:
        with replacing(records.with_name(PACKED)) as fresh:
            fresh.write_bytes(gzip.compress(records.read_bytes()))


def quick_of(suite: str) -> str:
    """The suite to tune and to count: its short form, because ncu replays every launch many times."""
    return "quick" if suite == "full" else suite


MEASURE = Step(name="measure", share=1.0, least_s=OVERRUN_S + 20.0, least_cpu_s=OVERRUN_S)
STEPS = (
    Step(name="doctor", share=0.15, least_s=10.0),
    Step(name="gate", share=0.3, least_s=20.0),
    Step(name="tune", share=0.15, least_s=40.0, most_s=tuning.LIMIT_S),
    MEASURE,
    Step(name="selfcheck", share=0.5, least_s=40.0),
    Step(name="counters", share=1.0, least_s=100.0),
)
"""What the least times are made of: torch takes 10 s to load from a cold disk. The clocks' turns take 18 s, and the
compilation of their kernels as long. ncu replays each of some tens of launches. The tuner compiles before it times."""
NAMES = tuple(step.name for step in STEPS)
