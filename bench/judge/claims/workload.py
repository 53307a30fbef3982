"""Claims about the price of a token by its workload: what a token costs, and what a machine earns."""

from __future__ import annotations

from itertools import product

from bench.devices import find
from bench.judge.claims import whole_steps
from bench.judge.claims.base import APPROXIMATE, MEASURED, Claim, Comparison, number, our_range
from bench.judge.claims.common import DEEPSEEK_V3, H100, LLAMA_8B, LLAMA_70B, decode, measured, power, predicted
from bench.judge.claims.others import Others, bandwidth_of, by_others, some, where
from bench.judge.claims.reading import MeasuredPart, batch_of, require_some, seconds, weight_format
from bench.predict.weights import recipe
from kernels.models import active_parameters, model

YEAR = 365 * 24 * 3600.0

# -------------------------------------------------------------------------------- M7: bytes over bandwidth over batch

PRECISION_OF = {"int8": "w8a16", "fp8": "fp8", "int4": "int4", "fp8_block": "fp8"}
M7_RATIO = our_range("step over model bytes / bandwidth", 1, 1, "x", MEASURED)


def predict_m7() -> list[Comparison]:
    found = []
    for shape, batch, context in product((LLAMA_70B, DEEPSEEK_V3), (1, 16, 64), (128, 4096, 32_768)):
        step = decode(shape, batch=batch, context=context)
        whole = step.weight_bytes / bandwidth_of(H100)
        how = "step / (all weights / bandwidth)"
        setting = {"model": shape.name, "batch": batch, "context": context}
        found.append(predicted(M7_RATIO, step.seconds / whole, how, **setting))
    return found


def measure_m7(run: MeasuredPart) -> list[Comparison]:
    """Steps of whole models."""
    found = []
    for shape, record in whole_steps.whole_models(run):
        stored = recipe(shape, PRECISION_OF.get(weight_format(record), "bf16")).total_bytes(shape)
        value = seconds(record) * whole_steps.bandwidth(run) / stored
        setting = {"model": shape.name, "batch": batch_of(record), "context": record.case["T"]}
        found.append(measured(M7_RATIO, value, "the measured step / (all weights / bandwidth)", [record], **setting))
    return require_some(found, "`decode_step` of all layers of a model")


def others_m7(others: Others) -> list[Comparison]:
    """Whole servers of Llama-3.1-70B in fp8."""
    rows = others.servers
    rows = where(rows[rows["model"].str.contains("Llama-3.1-70B")], stored="fp8")
    found = []
    for (part, tp, batch), mine in some(rows, "a server of Llama-3.1-70B").groupby(["part", "tp", "B"], observed=True):
        if batch in (4, 64):
            least = active_parameters(LLAMA_70B) / (bandwidth_of(str(part)) * tp)
            how = "median published time per token / (1 B a weight / bandwidth of all parts), 1,536 to 8,704 tokens"
            setting = {"model": LLAMA_70B.name, "batch": batch, "part": part, "parts": tp}
            found.append(by_others(M7_RATIO, mine["seconds"].median() / least, how, mine, **setting))
    return found


M7 = Claim(
    id="M7",
    text="an output token costs model bytes / bandwidth / batch",
    plain="A word costs one reading of the whole model, shared among the users",
    source="A",
    how="P M V",
    published=(M7_RATIO,),
    setting="bf16 at H100 rates, and whole servers in fp8. Model, batch and context are varied",
    predict=predict_m7,
    measure=measure_m7,
    by_others=others_m7,
)

# ----------------------------------------------------------------------------------------- M8: prefill's share

M8_SHARE = number("share of GPU time in prefill", 0.8, "", APPROXIMATE)


def predict_m8() -> list[Comparison]:
    found = []
    for (prompt, output), batch in product(((1024, 256), (4096, 256), (8192, 128), (512, 1024)), (1, 16, 64, 256)):
        step = decode(LLAMA_70B, batch=batch, context=prompt)
        writing = output * step.seconds / batch
        value = step.prefill_seconds / (step.prefill_seconds + writing)
        how = "prefill / (prefill + output x step / batch), H100 roofline"
        found.append(predicted(M8_SHARE, value, how, request=f"{prompt} in and {output} out", batch=batch))
    return found


M8 = Claim(
    id="M8",
    text="prefill takes about 80% of GPU cycles",
    plain="Four fifths of the machines' time goes into reading questions",
    source="A",
    how="P M",
    published=(M8_SHARE,),
    setting="Llama-3.1-70B in bf16. Request and batch are varied",
    predict=predict_m8,
    never="the share is that of a fleet under its own traffic, and no such traffic is at hand",
)

# -------------------------------------------------------------------------------------------- M9: electricity

M9_SHARE = our_range("electricity over the rent of a GPU", 0.5, 1, "")


def predict_m9() -> list[Comparison]:
    found = []
    for key, rent, price in product((H100, "b200"), (1.5, 2.5, 4.0), (0.05, 0.1, 0.3)):
        value = 1.5 * power(find(key)) / 1000 * price / rent
        how = "1.5 x rated power (host and cooling) x $ a kWh / $ an hour of rent"
        setting = {"part": find(key).name, "$ an hour": f"{rent:g}", "$ a kWh": f"{price:g}"}
        found.append(predicted(M9_SHARE, value, how, **setting))
    return found


M9 = Claim(
    id="M9",
    text="the price of inference floors at electricity",
    plain="In the end a word costs what its electricity costs",
    source="A",
    how="P M",
    published=(M9_SHARE,),
    setting="Floors at: electricity is at least half of what a GPU's hour costs. Part, rent and price are varied",
    predict=predict_m9,
    never="a price over years cannot be measured by a run",
)

# ------------------------------------------------------------------------------------- M10: a million tokens on a B200

M10_COST = number("$ per million tokens on a B200", 0.02, "$", APPROXIMATE)
HOURLY = (3.0, 5.0, 8.0)


def predict_m10() -> list[Comparison]:
    found = []
    shapes = (LLAMA_8B, LLAMA_70B, model("gpt-oss-120b"))
    for shape, weights, batch, rent in product(shapes, ("fp8", "fp4"), (64, 256, 1024), HOURLY):
        step = decode(shape, "b200", weights=weights, kv="fp8", batch=batch, context=1024)
        if step.fits:
            cost = step.dollars_per_million_tokens(rent)
            setting = {"model": shape.name, "weights": weights, "batch": batch, "$ an hour": f"{rent:g}"}
            found.append(predicted(M10_COST, cost, "price an hour x step / batch, 1,024 tokens", **setting))
    return found


def others_m10(others: Others) -> list[Comparison]:
    """The cheapest published server of each model on B200s."""
    rows = where(others.servers, part="b200")
    rows = some(rows, "a server on a B200").assign(cost=lambda r: r["seconds"] / r["B"] * r["tp"] * r["dp"] / 3600e-6)
    found = []
    for name, mine in rows.groupby("model", observed=True):
        if not len(mine):
            continue
        best = mine.nsmallest(1, "cost")
        for rent in HOURLY:
            how = "price an hour x parts x published time per token / batch, the cheapest published setting"
            setting = {"model": str(name), "weights": "as published", "$ an hour": f"{rent:g}"}
            found.append(by_others(M10_COST, best["cost"].iloc[0] * rent, how, best, **setting))
    return found


M10 = Claim(
    id="M10",
    text="a B200 makes a million tokens for $0.02",
    plain="A million words cost two cents on the newest machine",
    source="A",
    how="P V",
    published=(M10_COST,),
    setting="The text names neither model nor price: model, precision, batch and rent are varied",
    predict=predict_m10,
    by_others=others_m10,
)

# ------------------------------------------------------------------------------------- M11: what a rack earns

M11_EARNED = number("revenue of a GB200 NVL72 in DeepSeek-R1 tokens", 75, "M$", APPROXIMATE)
LIFE = (3, 5)
PER_MILLION = (0.5, 1.0, 2.19)
"""$ per million output tokens. DeepSeek asked 2.19 for R1 in 2025 (api-docs.deepseek.com, as others quote it)."""


def predict_m11() -> list[Comparison]:
    step = decode(DEEPSEEK_V3, "gb200", weights="fp8", kv="fp8", batch=4096, context=2048, devices=64)
    rate = step.tokens_per_second * 72 / 64
    return [
        predicted(
            M11_EARNED,
            rate * YEAR * years * price / 1e12,
            "roofline of 64 parts at batch 4,096, scaled to 72, sold for its whole life",
            life=f"{years} years",
            **{"$ per million": f"{price:g}"},
        )
        for years, price in product(LIFE, PER_MILLION)
    ]


def others_m11(others: Others) -> list[Comparison]:
    """The published server of DeepSeek-R1 with most tokens per second and part."""
    rows = others.servers
    rows = where(rows[rows["model"].str.contains("DeepSeek-R1")], part="gb200")
    rows = some(rows, "a server of DeepSeek-R1 on a GB200")
    each = rows["B"] / rows["seconds"] / (rows["tp"] * rows["dp"])
    best = rows.loc[[each.idxmax()]]
    return [
        by_others(
            M11_EARNED,
            72 * each.max() * YEAR * years * price / 1e12,
            "72 x the best published tokens per second and part, sold for its whole life",
            best,
            life=f"{years} years",
            **{"$ per million": f"{price:g}"},
        )
        for years, price in product(LIFE, PER_MILLION)
    ]


M11 = Claim(
    id="M11",
    text="a GB200 NVL72 of $5M earns $75M in DeepSeek-R1 tokens",
    plain="A rack of the newest machines earns 15 times its price",
    source="A",
    how="P V",
    published=(M11_EARNED,),
    setting="Output tokens, sold without a pause. Life and price are varied",
    predict=predict_m11,
    by_others=others_m11,
)

# ----------------------------------------------------------------------------- M12: an installation of one's own

M12_LOAD = number("tokens a day from which an own installation pays", 10e6, "token", APPROXIMATE)


def predict_m12() -> list[Comparison]:
    found = []
    for count, rent, price in product((1, 2, 8), (1.5, 2.5, 4.0), (0.5, 2.0, 6.0, 15.0)):
        value = count * rent * 24 / price * 1e6
        how = "$ a day of the parts / $ per million tokens of a service"
        setting = {"parts": count, "$ an hour": f"{rent:g}", "$ per million": f"{price:g}"}
        found.append(predicted(M12_LOAD, value, how, **setting))
    return found


M12 = Claim(
    id="M12",
    text="above 10 million tokens a day an own installation pays",
    plain="Who writes more than ten million words a day should own the machines",
    source="C",
    how="P",
    published=(M12_LOAD,),
    setting="Rented parts that are paid day and night against a service paid by the token. All three are varied",
    predict=predict_m12,
)
