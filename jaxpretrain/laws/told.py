"""The document of an analysis in words and tables, for the terminal."""

from collections.abc import Iterator

from jaxpretrain.config.serialize import Document
from jaxpretrain.diagnosis.predicted import how_far
from jaxpretrain.display.wording import format_count, format_number, format_table
from jaxpretrain.laws.law import NAMES
from jaxpretrain.reports.scaling import law_rows, optimal_rows

_DIGITS = 5


def tell(document: Document) -> Iterator[str]:
    """Yields the lines about fits, optimal sizes, doubts and the prediction."""
    number = document["num_points"]
    yield f"{number} points of {document['metric']}, hash {document['hash'][:12]}"
    if laws := law_rows(document):
        yield ""
        rows = [
            row
            for name, fit in laws
            for row in (_coefficients(name, fit), ("  95 %", *_ends(fit), ""))
        ]
        yield from format_table([("fit", *NAMES, "objective"), *rows])
    yield ""
    head = ("best sizes", "N grows as C to the", "95 % interval", "D as C to the")
    rows = [
        (
            fit["method"],
            _number(fit["n_exponent"]),
            _interval(fit["intervals"]["n_exponent"]),
            _number(fit["d_exponent"]),
        )
        for fit in document["fits"]
    ]
    yield from format_table([head, *rows])
    if document["optimal"]:
        yield ""
        yield from format_table([_OPTIMAL, *optimal_rows(document)])
    yield from _influence(document)
    yield from _prediction(document["prediction"])
    for one in document["scored"]:
        where = "inside" if one["is_inside"] else "outside of"
        kind = "hindcast" if one["hindcast"] else "predicted"
        yield (
            f"{one['name']}: {kind} {_number(one['loss'])}, measured {_number(one['measured'])}, "
            f"error {one['error']:+.2%}, {where} its interval"
        )
    for line in document["warnings"]:
        yield f"Warning: {line}."


_OPTIMAL = ("FLOPs", "parameters", "tokens", "tokens a parameter", "loss", "95 % interval")


def _coefficients(name: str, fit: Document) -> tuple[str, ...]:
    return (name, *(_number(fit[name]) for name in NAMES), f"{fit['objective']:.6g}")


def _ends(fit: Document) -> Iterator[str]:
    for name in NAMES:
        yield _interval(fit["intervals"][name])


def _influence(document: Document) -> Iterator[str]:
    if (found := document["influence"]) is None:
        return
    rows = found["strongest"]
    named = ", ".join(f"{row['name']} ({format_number(row['moves'], 2)})" for row in rows)
    rest = ", ".join(f"{name} {_number(found['without'][name])}" for name in NAMES)
    yield ""
    yield f"Points that move an exponent most when left out: {named}."
    yield f"Without these {len(rows)}: {rest}."


def _prediction(found: Document | None) -> Iterator[str]:
    if found is None:
        return
    kind = "Hindcast" if found["hindcast"] else "Prediction"
    size, length = format_count(found["parameters"]), format_count(found["tokens"])
    yield ""
    yield (
        f"{kind} for {size} parameters and {length} tokens: {found['metric']} "
        f"{_number(found['loss'])}, 95 % from {_number(found['low'])} to {_number(found['high'])}; "
        f"it {how_far(found['extrapolation'])}."
    )
    for row in found["scores"]:
        ends = f"95 % from {_number(row['low'])} to {_number(row['high'])}"
        yield f"  {row['metric']} {_number(row['value'])}, {ends}"


def _number(value: float | None) -> str:
    return format_number(value, _DIGITS)


def _interval(ends: list[float | None]) -> str:
    low, high = (format_number(end, 4) for end in ends)
    return f"{low} to {high}"
