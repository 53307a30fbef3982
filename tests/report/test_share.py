"""`share`: no identifying text of a made-up environment survives, and the file serves wherever a run does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.errors import BadRequest
from bench.judge import claims, kin
from bench.judge.claims import judge
from bench.judge.compare import compare
from bench.records import FILE
from bench.report import calculator, share, site
from bench.report.anonymous import hider
from bench.run import Run, load_run
from tests.support.synthetic_run import case_record, ceiling_records, decode_records, gemv, header, write_run

SECRETS = {
    "host": "node-a17",
    "host with its domain": "node-a17.gpu.example-lab.org",
    "another host": "login3.cluster.local",
    "user": "mgrabowska",
    "mail": "m.grabowska@example-lab.org",
    "uuid": "GPU-5a1b2c3d-1122-3344-5566-77889900aabb",
    "uuid of a slice": "MIG-91b2c3d4-aaaa-bbbb-cccc-0123456789ab",
    "board": "deadbeef0123",
    "serial": "1653923004512",
    "pci": "00000000:9B:00.0",
    "short pci": "3b:00.0",
    "mac": "aa:bb:cc:11:22:33",
    "ip": "10.42.7.19",
    "ip v6": "fe80::1a2b:3c4d",
    "home": "/home/mgrabowska",
    "path": "/data7/secret-project/run",
    "other path": "C:\\Users\\mgrabowska\\bench",
    "repository": "git@internal.example-lab.org:team/secret-project.git",
}
"""What must not leave, by what it is."""


def telling(path: Path) -> Path:
    """A run that says each of `SECRETS` where a run could: in its header, variables, notes, reasons and telemetry."""
    s = SECRETS
    environment: dict[str, Any] = {
        **header()["environment"],
        "os": "Debian GNU/Linux 12",
        "kernel": "6.8.0-node-a17-custom",
        "hostname": s["host with its domain"],
        "user": s["user"],
        "cwd": s["path"],
        "gpu": {"name": "Synthetic GPU", "driver": "580.95.05", "serial": int(s["serial"]), "uuid": s["uuid"]}
        | {"board": s["board"], "pci_bus_id": s["pci"], "unavailable": {"mig": f"no {s['short pci']}"}},
        "variables": {
            "CUDA_VISIBLE_DEVICES": f"{s['uuid']},{s['uuid of a slice']}",
            "TRITON_CACHE_DIR": f"{s['home']}/.triton",
            "OMP_PROC_BIND": "close",
            "TORCH_EXTRA": f"on {s['host']} by {s['user']}",
            "SSH_CLIENT": s["ip"],
        },
        "git": {"sha": "0" * 12, "dirty": False, "remote": s["repository"], "author_email": s["mail"]},
    }
    small = {"B": 1, "N": 64, "K": 64}
    reasons = [
        f"RuntimeError: worker on {s['host with its domain']} died, see {s['path']}/log",
        f"OSError: {s['home']}/lib.so (user {s['user']}, {s['mail']})",
        f"NCCL: {s['ip']} {s['ip v6']} {s['mac']} at {s['another host']}",
        f"no device {s['pci']} or {s['short pci']}, serial number: {s['serial']}, {s['other path']}",
    ]
    failed = [
        case_record("ffn_gemv", f"peer{i}", small, status="failed", reason=reason) for i, reason in enumerate(reasons)
    ]
    told = case_record("ffn_gemv", "triton_gemv", small, seconds=1e-5, telemetry={"host": s["host"], "power_w": 3.0})
    notes = [{"note": f"begun on {s['host'].upper()}", "node": s["host"], "why": s["repository"]}]
    changes = {"environment": environment, "argv": ["run", "--out", s["path"]], "run_id": s["host"], "owner": s["user"]}
    records = [*ceiling_records(), *decode_records(), *failed, told]
    return write_run(path, records, notes=notes, request={"suite": "quick", "ops": [], "repeat": 1}, **changes)


def test_nothing_that_names_a_machine_or_a_person_is_left(tmp_path: Path) -> None:
    run = telling(tmp_path / "run")
    assert [what for what, secret in SECRETS.items() if json.dumps(secret)[1:-1] not in (run / FILE).read_text()] == []
    text = share.write(run, tmp_path / "a.jsonl").read_text().lower()
    assert [what for what, secret in SECRETS.items() if json.dumps(secret)[1:-1].lower() in text] == []
    assert "secret-project" not in text
    assert "example-lab" not in text
    assert '"omp_proc_bind":"close"' in text
    assert '"driver":"580.95.05"' in text
    assert "runtimeerror: worker on (hidden) died, see (hidden)" in text
    assert share.write(run, tmp_path / "b.jsonl").read_text().lower() == text


@pytest.mark.parametrize(
    "text",
    [
        "max_rel 3.1 over 0.016 at 12:30",
        "needs sm_90 or later; 2.11.0+cu128 has triton 3.6.0",
        "compulsory FLOP/s and GB/s, and/or 4/8 bits, 50% / 2",
        "AttributeError: module 'triton.language' has no attribute 'dot.scaled'",
        "2026-11-21T11:21:28+00:00",
        "B32-Hq32-Hkv8-D128-T4096-page16-bf16",
        "reports 16 bytes: cp.async is absent, tl.load(a, b) is used",
    ],
)
def test_ordinary_texts_stay(text: str) -> None:
    assert hider(["somebody"])(text) == text


def test_a_shared_file_serves_wherever_a_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "scorecard", lambda runs, others: [judge("H1", runs, others)])  # quicker than all
    source = telling(tmp_path / "run")
    file = share.write(source, tmp_path / "shared" / "mine.jsonl")
    run, shared = load_run(source), load_run(file)
    assert (shared.warnings, shared.complete) == ([], True)
    assert [(r.key, r.seconds, r.prediction) for r in shared.records] == [
        (r.key, r.seconds, r.prediction) for r in run.records
    ]
    assert shared.ceilings == run.ceilings
    written = report.write(file, html=False, draw=False)
    assert written.paths == (tmp_path / "shared" / "mine" / "report.md",)
    assert judge("H1", [shared], ()) == judge("H1", [run], ())
    assert all(m.verdict == "same" for m in compare(source, file).matches)
    assert share.write(file, tmp_path / "again.jsonl").read_text() == file.read_text()


def test_the_committed_run_loses_nothing_but_names(tmp_path: Path) -> None:
    directory = next(Path("reports").glob(f"cpu-intel-*/*/{FILE}")).parent
    shared, run = load_run(share.write(directory, tmp_path / "x.jsonl")), load_run(directory)
    assert shared.records == run.records
    assert shared.notes == run.notes


def test_where_it_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", ceiling_records())
    monkeypatch.chdir(tmp_path)
    assert share.write(run).name.startswith("synthetic-gpu-")
    for name in (FILE, "x.txt"):
        with pytest.raises(BadRequest, match=r"ends in \.jsonl"):
            share.write(run, tmp_path / name)
    with pytest.raises(BadRequest, match="no such run"):
        share.write(tmp_path / "nothing")


# ---- a part against others of its kind


def run_at(path: Path, factor: float, seconds: float, **changes: Any) -> Run:
    """A run whose reads take `factor` times as long, with a case of `seconds`."""
    slow = [r for r in ceiling_records() if r.op != "stream"]
    reads = [r for r in ceiling_records() if r.op == "stream"]
    reads = [replace(r, samples_s=[factor * each for each in r.samples_s]) for r in reads]
    return load_run(write_run(path, [*reads, *slow, gemv(seconds, case_id="a")], **changes))


def test_deviations_from_the_median_of_the_others_by_hand(tmp_path: Path) -> None:
    """The others read at 1, 1/1.1 and 1/1.25 of the roof, this run at 1/2. Their GEMV takes 1, 2 and 4 ms, its 1 ms."""
    runs = [
        run_at(tmp_path / name, factor, seconds, run_id=name)
        for name, factor, seconds in (("m", 2, 1e-3), ("a", 1, 1e-3), ("b", 1.1, 2e-3), ("c", 1.25, 4e-3))
    ]
    other_part = run_at(tmp_path / "d", 1, 1e-3, run_id="d", device={"key": None, "name": "Another GPU"})
    (group,) = kin.kinds([*runs, other_part])
    assert group == runs
    found = {standing.measure: standing for standing in kin.standings(runs[0], group)}
    roof = found["read roof"]
    assert roof.deviation == pytest.approx(1.1 / 2 - 1)
    assert roof.others == pytest.approx((0.1, 0.0, 1.1 / 1.25 - 1))
    assert roof.outside
    assert found["launch"].deviation == pytest.approx(1.1 / 2 - 1)
    assert found["peak of mma_bf16"].deviation == 0.0
    op = found["GEMV"]
    assert (op.mine, op.deviation, op.others) == ("1 case", pytest.approx(1.0), pytest.approx((1.0, 0.0, -0.5)))
    assert not op.outside
    assert kin.table([roof]).rows[0][3:] == ("-45.0%", "-12.0% to +10.0%", "3", "outside the others' range")
    assert kin.sentence(list(found.values())) == (
        "This run reads 45.0% slower and is 100.0% faster in GEMV than the median of 3 other runs of the same part."
    )


def test_a_run_is_no_other_of_itself_nor_of_its_board(tmp_path: Path) -> None:
    board = {"environment": {"gpu": {"board": "x"}}}
    a, b = (run_at(tmp_path / name, 1, 1e-3, run_id=name, **board) for name in ("a", "b"))
    again = load_run(share.write(a.path, tmp_path / "again.jsonl"))
    assert kin.standings(a, [a, b]) == []
    assert a.header["run_id"] != again.header["run_id"]  # it was a name that anybody could have given
    real = run_at(tmp_path / "r", 1, 1e-3, run_id="20260101T000000Z-0123456")
    assert kin.standings(real, [real, load_run(share.write(real.path, tmp_path / "r.jsonl"))]) == []


def test_a_site_takes_shared_files_and_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calculator, "MODELS", {"llama-2-7b": calculator.MODELS["llama-2-7b"]})
    monkeypatch.setattr(claims, "scorecard", lambda runs, others: [])
    source = tmp_path / "source"
    telling(source / "mine")
    run_at(tmp_path / "theirs", 1.1, 2e-3, run_id="20260101T000000Z-0123456")
    share.write(tmp_path / "theirs", source / "community" / "theirs.jsonl")
    (source / "community" / "other.jsonl").write_text('{"kind": "else"}\n')
    found = site.write(source, tmp_path / "out", draw=False)
    assert found.notes == ()
    assert [entry.address for entry in found.entries] == ["mine/report.html", "community/theirs/report.html"]
    assert all("than the other run of the same part." in entry.standing for entry in found.entries)
    page = (tmp_path / "out" / "kin.html").read_text()
    assert page.count("read roof") == 2
    assert "+10.0%" in page
    assert 'href="kin.html"' in found.index.read_text()
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            text = path.read_text().lower()
            assert [what for what, secret in SECRETS.items() if secret.lower() in text] == [], path
