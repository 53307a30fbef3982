"""Commands that predict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BadRequest
from bench.terminal.arguments import comma_separated, short_duration, whole_numbers
from bench.terminal.options import AsCsv, AsJson, AsMarkdown, examples
from bench.terminal.screen import busy, complain, form_of, paragraphs, read_run, show, show_json
from kernels.model_config import FAMILIES

app = typer.Typer()

CONFIGS = (
    "a Hugging Face config.json; several, or a directory of them, for a table of what each model holds; with one of "
    f"these as its model_type: {', '.join(FAMILIES)}"
)
MOST_STEPS = 5_000
"""More steps are not expected in one call."""
OWN = "(default: as config.json says, else bf16)"
PRECISIONS = "fp32, bf16, fp16, fp8, int8, w8a16, int4 or fp4"


@app.command(
    epilog=examples(
        "predict --model llama-3.1-70b --part h100-sxm,h200 --tp 2,4 --price h100-sxm=2.5,h200=3.5 --tpot 50ms",
        "predict --config config.json --context 4096,32768 --part cpu --csv",
        "predict --config configs/*.json --md",
    )
)
def predict(
    more: Annotated[list[Path] | None, typer.Argument(help="more files after --config", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="one of `list models`; with --config, a name for it")] = None,
    config: Annotated[list[Path] | None, typer.Option(help=CONFIGS)] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            "--device",
            help="of `list devices`, comma-separated (default: h100-sxm); cpu: this machine, by its newest run",
        ),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option("--from", help="a run: its machine, as it was measured there")] = None,
    batch: Annotated[str, typer.Option(help="batch sizes, comma-separated")] = "1,8,64,256",
    context: Annotated[str, typer.Option(help="tokens that each request attends to, comma-separated")] = "4096",
    weights: Annotated[
        str | None, typer.Option(help=f"precisions of the weights, comma-separated: {PRECISIONS} {OWN}")
    ] = None,
    kv: Annotated[str | None, typer.Option(help=f"precisions of the KV cache: the same without w8a16 {OWN}")] = None,
    beyond: Annotated[bool, typer.Option("--beyond", help="also contexts beyond the longest of the model")] = False,
    tp: Annotated[
        str, typer.Option("--tp", "--devices", help="how many parts share the model (tensor-parallel), comma-separated")
    ] = "1",
    drafts: Annotated[
        str, typer.Option(help="drafted tokens that a step verifies for each request, comma-separated")
    ] = "0",
    price: Annotated[
        str | None, typer.Option(help="dollars per hour for one part: 2.5, or h100-sxm=2.5,h200=3.5")
    ] = None,
    tpot: Annotated[
        str | None, typer.Option(help="name the best setting that takes at most so long for a token, e.g. 50ms")
    ] = None,
    floor: Annotated[bool, typer.Option("--floor", help="only the floor, with the datasheet's memory")] = False,
    plot: Annotated[Path | None, typer.Option(help="draw latency against throughput into this file")] = None,
    html: Annotated[
        Path | None, typer.Option(help="write a page with sliders into this file, for all models or the one named")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_md: AsMarkdown = False,
) -> None:
    """Predict time, memory and cost of a whole decode step, from datasheets or from what a run measured."""
    from bench.judge.busyness import banner
    from bench.predict import command as prediction
    from bench.predict import configs, expected_rows, host, sweep

    given = [*(config or []), *(more or [])]
    if more and not config:
        raise BadRequest(f"{more[0]}: files come after --config")
    if given and (files := configs.files_of(given)) is not None:
        if model or html or plot:
            raise BadRequest("several files make one table: leave out --model, --html and --plot")
        held = configs.rows(files, weights=weights, kv=kv)
        if as_json:
            show_json(held)
        else:
            form = form_of(as_csv, as_md)
            if form or any(not row["error"] for row in held):
                show(*configs.table(held, narrow=not form), form=form, least_important=configs.LEAST_IMPORTANT)
            complain(*configs.lines(held))
        if all(row["error"] for row in held):
            raise typer.Exit(2)
        return
    config_file = given[0] / "config.json" if given and given[0].is_dir() else given[0] if given else None
    form, limit = form_of(as_csv, as_md), None if tpot is None else short_duration("--tpot", tpot)
    if run_dir and part:
        raise BadRequest("--from predicts for the machine of that run: leave out --device or --part")
    if html:
        from bench.devices import find
        from bench.report import calculator

        dollars = sweep.read_prices(price)
        calculator.write(
            html,
            model,
            config_file,
            part=find(part.split(",")[0]).key if part else None,
            batch=whole_numbers(batch, "batch")[0],
            context=whole_numbers(context, "context")[0],
            devices=whole_numbers(tp, "tp")[0],
            weights=weights,
            kv=kv,
            price=dollars if isinstance(dollars, float) else None,
        )
        print(html)
        return
    if part == host.PART:
        run_dir, part = host.newest_run(Path("reports")), None
        complain(f"this machine as {run_dir} measured it")
    measured = read_run(run_dir) if run_dir else None
    if measured and (warning := banner(measured)):
        complain(warning)
    found = sweep.sweep(
        model=model,
        config=config_file,
        parts=comma_separated("h100-sxm" if part is None else part, "part or --device"),
        batches=whole_numbers(batch, "batch"),
        contexts=whole_numbers(context, "context"),
        weights=comma_separated(weights, "weights") if weights else [None],
        kv=comma_separated(kv, "kv") if kv else [None],
        devices=whole_numbers(tp, "tp"),
        drafts=whole_numbers(drafts, "drafts"),
        prices=sweep.read_prices(price),
        run=measured,
        beyond=beyond,
        expect=not floor and measured is None,
    )
    if plot:
        prediction.plot(plot, found)
        complain(str(plot))
    if as_json:
        show_json(found)
        return
    show(*sweep.table(found), form=form, least_important=sweep.LEAST_IMPORTANT)
    best = [] if limit is None else [sweep.best_under(found, limit)]
    said = [*prediction.remarks(found), *expected_rows.remarks(found), *best]
    if form:
        complain(*best)
        return
    paragraphs(*said)
    if run_dir:
        print()
        show(*prediction.measured_table(found))


@app.command(
    epilog=examples(
        "step --model llama-3.1-8b --batch 1 --context 4096 --part h200",
        "step --model qwen3-next-80b-a3b --batch 1,8,64 --context 4096,32768 --part h200",
        "step --model qwen2.5-0.5b --context 1024 --device cpu --json",
        "step --checkpoint DIR --prompt-ids 1,2,3 --tokens 16",
    )
)
def step(
    model: Annotated[str, typer.Option(help="one of `list models`")] = "",
    checkpoint: Annotated[
        Path | None, typer.Option(help="a directory with config.json and *.safetensors: decode tokens by our step")
    ] = None,
    prompt_ids: Annotated[str, typer.Option(help="token ids to go on from, such as 1,2,3 (default: drawn)")] = "",
    tokens: Annotated[int, typer.Option(help="tokens that a checkpoint decodes", min=1)] = 16,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="make 16 bits of quantized weights that no product here takes")
    ] = False,
    batch: Annotated[str, typer.Option(help="sequences that each get a token; several make a table")] = "1",
    context: Annotated[str, typer.Option(help="tokens that each of them attends to, comma-separated too")] = "4096",
    part: Annotated[str, typer.Option(help="of `list devices`: what a step is expected to take there")] = "h100-sxm",
    device: Annotated[str, typer.Option(help="cpu: measure the step on this host instead")] = "",
    layers: Annotated[int, typer.Option(help="only so many layers of the model (default: all)", min=0)] = 0,
    weights: Annotated[str, typer.Option(help=f"precisions of the weights, comma-separated: {PRECISIONS}")] = "bf16",
    kv: Annotated[str, typer.Option(help="precisions of the KV cache: the same without w8a16")] = "bf16",
    tp: Annotated[
        str, typer.Option("--tp", help="how many parts share the model (tensor-parallel), comma-separated")
    ] = "1",
    drafts: Annotated[
        str, typer.Option(help="drafted tokens that a step verifies for each sequence, comma-separated")
    ] = "0",
    price: Annotated[float | None, typer.Option(help="dollars per hour for one part", min=0.0)] = None,
    run_dir: Annotated[Path | None, typer.Option("--from", help="a run, for the read roof that it measured")] = None,
    as_json: AsJson = False,
) -> None:
    """Show where the microseconds of a whole decode step go: floor, operations, gaps, and each one's share."""
    if checkpoint:
        if model:
            raise BadRequest(f"--model {model}: a checkpoint says itself which model it is; leave it out")
        decode_checkpoint(checkpoint, prompt_ids, tokens, device, dequantize, as_json)
        return
    if not model:
        raise BadRequest("name a --model of `decodebench list models`, or a directory with --checkpoint")
    from bench.judge.published import steps
    from bench.predict import step_request
    from bench.predict.step_table import swept

    run = read_run(run_dir) if run_dir else None
    asked = [
        step_request.Request(
            model=model,
            batch=rows,
            context=length,
            layers=layers,
            weights=stored,
            kv=cache,
            part=part,
            devices=parts,
            tokens=1 + drafted,
        )
        for stored in comma_separated(weights, "weights")
        for cache in comma_separated(kv, "kv")
        for parts in whole_numbers(tp, "tp")
        for drafted in whole_numbers(drafts, "drafts")
        for length in whole_numbers(context, "context")
        for rows in whole_numbers(batch, "batch")
    ]
    if len(asked) > MOST_STEPS:
        raise BadRequest(f"more than {MOST_STEPS:,} settings: ask for fewer")
    if run and device:
        raise BadRequest("--from predicts for the machine of that run: leave out --device")
    if device not in ("", "cpu"):
        raise BadRequest(f"--device {device}: a step is measured here on a cpu; on a GPU `decodebench run` measures it")
    if device and any(each.devices > 1 for each in asked):
        from bench.measure.split_step import measure_split

        with busy("measuring the step over ranks"):
            split = [measure_split(each) for each in asked]
        if as_json:
            show_json([each.as_dict() for each in split] if split[1:] else split[0].as_dict())
            return
        for each in split:
            paragraphs(*each.lines())
        return
    if device:
        from bench.measure.step_parts import measure_request

        with busy("measuring the step and each of its operations"):
            steps_found = [measure_request(each) for each in asked]
    else:
        steps_found = [step_request.expect(each, step_request.roof_of(each, run) if run else None) for each in asked]
    steps_found = [replace(each, dollars_per_hour=price) for each in steps_found]
    found = steps_found[0]
    if as_json:
        show_json([each.as_dict() for each in steps_found] if steps_found[1:] else found.as_dict())
        return
    if steps_found[1:]:
        show(*swept(steps_found))
        if costs := found.costs():
            print("", f"by batch {found.batch:,} and {found.context:,} tokens:", *costs, sep="\n")
        print("", *(note for note in found.notes if all(note in each.notes for each in steps_found)), sep="\n")
        return
    paragraphs(*found.lines(), "")
    show(*found.table())
    if others := [row for row in steps.rows() if row["model"] == found.model]:
        print("\nthe same model by others, outside of servers:")
        show(*steps.table(others))


def decode_checkpoint(
    directory: Path, prompt_ids: str, tokens: int, device: str, dequantize: bool, as_json: bool
) -> None:
    """Greedy tokens of a checkpoint, on a GPU if there is one."""
    from bench.machine import detect
    from bench.measure.step_tokens import decode

    with busy("decoding"):
        found = decode(directory, prompt_ids, tokens, detect(device or "auto"), dequantize)
    if as_json:
        show_json(found.as_dict())
        return
    paragraphs(*found.lines())
