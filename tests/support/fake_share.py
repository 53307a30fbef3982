"""Takes the place of a fleet's share process: it writes a run of three records without loading torch.

In the folder `$FAKE_SHARE`, a file `dies-<cores>` makes that share kill itself after its first record, once; a file
`slow-<cores>` makes its times half as long again; a file `waits` makes every share wait before its second record until
the file is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bench.files import write_text
from bench.operate.parent import end_with_parent
from bench.records import FILE, Writer, as_line
from bench.run import load_run
from tests.support.synthetic_run import gate, header

SHARES = (0.9, 0.8, 0.7)


def measure(task: dict[str, Any], control: Path) -> None:
    resumed = Path(task["resume"]) if task["resume"] else None
    directory = resumed or Path(task["out"]) / "part" / "run"
    done = {r.case_id for r in load_run(directory / FILE).records} if resumed else set()
    writer = Writer(directory)
    writer.append("run", header())
    cores = "-".join(map(str, task["cores"]))
    slow = 1.5 if (control / f"slow-{cores}").exists() else 1.0
    for n, share in enumerate(SHARES):
        record = gate(share / slow, B=1 << n)
        if record.case_id in done:
            continue
        if n == 1:
            while (control / "waits").exists():
                time.sleep(0.02)
        writer.append("record", as_line(record))
        write_text(Path(task["at"]), json.dumps({"done": n, "total": len(SHARES), "what": record.case_id}))
        dies = control / f"dies-{cores}"
        if dies.exists():
            dies.unlink()
            time.sleep(0.5)  # the record is sent
            os.kill(os.getpid(), signal.SIGKILL)
    writer.append("end", {"at": "then"})


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    measure(json.loads(Path(sys.argv[1]).read_text()), Path(os.environ["FAKE_SHARE"]))
