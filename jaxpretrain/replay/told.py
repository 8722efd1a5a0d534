"""The document of a replay in words and tables, for the terminal."""

from collections.abc import Iterator

from jaxpretrain.config.serialize import Document
from jaxpretrain.display.wording import format_number, format_table

_MOST = 6


def tell(document: Document) -> Iterator[str]:
    """Yields the lines about the proof, the suspects, the steps, and what else was asked for."""
    if document["against"] is not None:
        yield from (*document["against"], "")
    yield f"the same steps? {document['proof']['words']}"
    if (twice := document["twice"]) is not None:
        yield twice
    yield ""
    found = document["suspects"]
    yield "suspects, the likeliest cause first:" if found else "nothing stands out"
    for number, one in enumerate(found[:_MOST], 1):
        yield f"{number}. {one['kind']}: {one['name']}"
        yield f"   {one['why']}"
    yield ""
    first = document["steps"][0]
    states = {one["step"]: one["state"] for one in document["proof"]["steps"]}
    head = ("step", "loss", "gradient norm", "clipped to", "learning rate", "as recorded")
    rows = [
        (
            f"{one['step']:,}",
            one["loss"],
            one["grad_norm"],
            f"{one['clipped_to']:.0%}",
            f"{one['learning_rate']:.3g}",
            states[one["step"]],
        )
        for one in document["metrics"]
        if one["step"] >= first
    ]
    yield from format_table([head, *rows])
    yield from _parts(document)
    for arm in document["arms"]:
        yield ""
        yield f"{arm['name']}: {arm['words']}"


def _parts(document: Document) -> Iterator[str]:
    """Yields the examples and the documents with the highest losses."""
    for title, key in (("examples", "examples"), ("documents", "documents")):
        if not (parts := document[key]):
            continue
        yield ""
        yield f"{title} with the highest losses:"
        for one in parts[:_MOST]:
            gradient = "" if one["gradient"] is None else f", gradient {one['gradient']:.3g}"
            again = one.get("again") or []
            copies = f", also in sample {', '.join(map(str, again[:3]))}" if again else ""
            yield f"  loss {format_number(one['loss'])}{gradient}{copies}: {one['words']}"
