"""Commands that predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BadRequest
from bench.terminal.arguments import comma_separated, whole_numbers
from bench.terminal.options import AsJson, examples
from bench.terminal.screen import complain, read_run, show, show_json
from kernels.model_config import FAMILIES

app = typer.Typer()

CONFIGS = f"a Hugging Face config.json with one of these as its model_type: {', '.join(FAMILIES)}"
OWN = "(default: as config.json says, else bf16)"
PRECISIONS = "fp32, bf16, fp16, fp8, int8, w8a16, int4 or fp4"


@app.command(
    epilog=examples("predict --model llama-3.1-8b --device h100-sxm,h200", "predict --config config.json --from RUN")
)
def predict(
    model: Annotated[str | None, typer.Option(help="one of `list models`; with --config, a name for it")] = None,
    config: Annotated[Path | None, typer.Option(help=CONFIGS)] = None,
    device: Annotated[str | None, typer.Option(help="of `list devices`, comma-separated (default: h100-sxm)")] = None,
    run_dir: Annotated[Path | None, typer.Option("--from", help="a run: its machine, as it was measured there")] = None,
    batch: Annotated[str, typer.Option(help="batch sizes, comma-separated")] = "1,8,64,256",
    context: Annotated[int, typer.Option(help="tokens that each request attends to")] = 4096,
    weights: Annotated[str | None, typer.Option(help=f"precision of the weights: {PRECISIONS} {OWN}")] = None,
    kv: Annotated[str | None, typer.Option(help=f"precision of the KV cache: the same without w8a16 {OWN}")] = None,
    beyond: Annotated[bool, typer.Option("--beyond", help="also contexts beyond the longest of the model")] = False,
    devices: Annotated[int, typer.Option(help="how many parts share the model (tensor-parallel)")] = 1,
    price: Annotated[float | None, typer.Option(help="dollars per hour for one part")] = None,
    floor: Annotated[bool, typer.Option("--floor", help="only the floor, with the datasheet's memory")] = False,
    plot: Annotated[Path | None, typer.Option(help="draw latency against throughput into this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict time, memory and cost of a whole decode step, from datasheets or from what a run measured."""
    from bench.predict import command as prediction
    from bench.predict import expected_rows

    if run_dir and device:
        raise BadRequest("--from predicts for the machine of that run: leave out --device")
    measured = read_run(run_dir) if run_dir else None
    found = prediction.rows(
        model=model,
        config=config,
        parts=comma_separated(device or "h100-sxm", "device"),
        batches=whole_numbers(batch, "batch"),
        context=context,
        weights=weights,
        kv=kv,
        devices=devices,
        dollars_per_hour=price,
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
    show(*prediction.table(found))
    for line in (*prediction.remarks(found), *expected_rows.remarks(found)):
        print(line)
    if run_dir:
        print()
        show(*prediction.measured_table(found))
