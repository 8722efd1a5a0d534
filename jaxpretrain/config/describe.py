"""The help of --help_config: each field of a config with its value, its type and its meaning.

The meaning of a field is the string literal directly below it.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator

from jaxpretrain.config import schema
from jaxpretrain.config.errors import InputError, nearest

_WIDTH = 79
_INDENT = " " * 6

_fill = functools.partial(
    textwrap.fill, width=_WIDTH, break_long_words=False, break_on_hyphens=False
)


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """One field: its path, the values that it may have, its value now, and its meaning.

    A group of fields that is not a choice has a path and a meaning only.
    """

    path: str
    type_text: str
    value_text: str
    meaning: str


def describe(config: object) -> list[FieldInfo]:
    """Returns all fields of a config, each group before the fields in it."""
    return list(_describe(config, type(config)))


def fields_of(cls: type) -> list[FieldInfo]:
    """Returns the fields of a class of configs, with their defaults; `required`: there is none."""
    meanings, found = _meanings(cls), []
    hints = schema.field_types(cls)
    for field in dataclasses.fields(cls):
        value = "required"
        if field.default is not dataclasses.MISSING:
            value = schema.value_text(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            value = schema.value_text(field.default_factory())
        type_text = schema.type_text(hints[field.name])
        found.append(FieldInfo(field.name, type_text, value, meanings.get(field.name, "")))
    return found


def format_help(infos: Iterable[FieldInfo], part: str = "") -> str:
    """Returns the fields as text for a terminal of 80 columns, one section for each group.

    `part` leaves out all fields but the one at this path and those below it; InputError where the
    config has nothing there.
    """
    infos = list(infos)
    shown = [info for info in infos if f"{info.path}.".startswith(f"{part}.") or not part]
    if not shown:
        hint = nearest(part, {info.path for info in infos})
        raise InputError(f"--help_config={part}: the config has no such field.{hint}")
    sections: dict[str, list[str]] = {"": ["Set any of these by --config.PATH=VALUE.", ""]}
    for info in shown:
        if not info.type_text:
            title = f"{info.path}: {info.meaning}" if info.meaning else info.path
            sections[info.path] = [_fill(title, subsequent_indent="  "), ""]
            continue
        group = info.path.rpartition(".")[0]
        section = sections.setdefault(group, [group, ""])
        setting = f"{info.path} = {info.value_text or '(empty)'}"
        section.append(_fill(setting, initial_indent="  ", subsequent_indent=_INDENT))
        meaning = f"{info.type_text}. {info.meaning}"
        section.append(_fill(meaning, initial_indent=_INDENT, subsequent_indent=_INDENT))
    return "\n\n".join("\n".join(lines).rstrip() for lines in sections.values()) + "\n"


def _describe(value: object, hint: schema.Hint, keys: schema.Keys = ()) -> Iterator[FieldInfo]:
    """Yields the fields of a dataclass, or of the dataclasses in a tuple or dict."""
    meanings = _meanings(type(value))
    for name, child, child_hint in schema.children(value, hint):
        path = (*keys, name)
        if dataclasses.is_dataclass(value):
            is_group = dataclasses.is_dataclass(child_hint)
            texts = (
                ("", "") if is_group else (schema.type_text(child_hint), schema.value_text(child))
            )
            yield FieldInfo(".".join(path), *texts, meanings.get(name, ""))
        yield from _describe(child, child_hint, path)


@functools.cache
def _meanings(cls: type) -> dict[str, str]:
    """Returns field name -> the string literal below it, in the class and in its base classes."""
    meanings = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue  # Without source, for example from an interactive session.
        for pair in itertools.pairwise(getattr(tree.body[0], "body", [])):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                    meanings[name] = " ".join(text.split())
    return meanings
