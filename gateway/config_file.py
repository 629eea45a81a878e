"""From `holdfast.yaml`, or from the command line, to a `Config`; all errors at once, each with its line."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gateway.config import Config
from gateway.config_checks import cross_faults, text
from gateway.yaml_tree import Fault, Loc, Mark, Tree, Unreadable, read_tree

FILE_BYTES_MAX = 2**20
ERRORS_MAX = 100  # shown; a thousandth line of the same slip helps nobody
COMMAND_LINE = "command line"
_FOLLOWS = "default_factory_not_called"  # says only that another field of the same part is wrong
_VARIABLE = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")
_NUMBERS = ("int_parsing", "int_type", "float_parsing", "float_type", "int_from_float", "finite_number")
_BOUNDS = ("greater_than_equal", "greater_than", "less_than_equal")


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One thing that is wrong. line, column: from 1, 0 where there is no text; field: "" for the whole file."""

    file: str
    line: int
    column: int
    field: str
    message: str
    suggestion: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.field, f"{self.message}. {self.suggestion}") if part)


class ConfigErrors(Exception):
    """All that is wrong with a configuration, in the order of its lines; never empty."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        self.errors = tuple(sorted(errors, key=lambda error: (error.line, error.column)))[:ERRORS_MAX]
        super().__init__("\n".join(map(str, self.errors)))


def load(path: str | Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check a configuration file. Paths in it are taken from its directory. Raises ConfigErrors only."""
    try:
        tree = read_tree(_text(Path(path)))
        if not isinstance(tree.value, dict):
            raise Unreadable(_no_mapping(tree))
    except Unreadable as unreadable:
        raise ConfigErrors([_error(str(path), Tree(), unreadable.fault)]) from None
    faults = list(tree.faults)
    raw = _expanded(tree.value, (), environ, faults)
    _anchor_paths(raw, Path(path).absolute().parent)
    return _config(raw, str(path), tree, faults)


def from_upstreams(
    urls: Sequence[str],
    *,
    data: Path = Path("holdfast-data"),
    key: str | None = None,
    listen: Mapping[str, Any] | None = None,
    workers: int | None = None,
) -> Config:
    """A configuration without a file: servers that are asked what they serve. key: one for all of them."""
    upstreams = [{"url": url, "key": key or None} for url in urls]
    raw = {"upstreams": upstreams, "data": data.absolute(), "listen": dict(listen or {}), "workers": workers or 1}
    return _config(raw, COMMAND_LINE, None, [])


def overridden(
    config: Config, *, data: Path | None = None, listen: Mapping[str, Any] | None = None, workers: int | None = None
) -> Config:
    """The same configuration with what the command line says instead; checked again."""
    raw: dict[str, Any] = dict(iter(config))  # iter: the field named `keys` makes dict() take it for a mapping
    raw["listen"] = {**dict(config.listen), **(listen or {})}
    raw["data"] = data.absolute() if data else config.data
    raw["workers"] = workers or config.workers
    return _config(raw, COMMAND_LINE, None, [])


def _config(raw: dict[str, Any], file: str, tree: Tree | None, faults: list[Fault]) -> Config:
    """Validate, and collect every fault: those found before, those of fields, those between fields."""
    config = None
    broken = {fault.loc for fault in faults}
    try:
        config = Config.model_validate(raw)
    except ValidationError as invalid:
        errors = [error for error in invalid.errors() if error["loc"] not in broken and error["type"] != _FOLLOWS]
        # A list whose items are all wrong counts as empty for pydantic; their own errors say what is the matter.
        errors = [error for error in errors if not (error["type"] == "too_short" and error["input"])]
        faults += [_field_fault(error, raw) for error in errors]
    faults += [fault for fault in cross_faults(raw) if fault.loc not in broken]
    if faults or config is None:
        raise ConfigErrors([_error(file, tree, fault) for fault in faults])
    return config


def _text(path: Path) -> str:
    """Read a bounded text file, or say in one sentence why not."""
    try:
        with open(path, "rb") as file:
            blob = file.read(FILE_BYTES_MAX + 1)
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mark = Mark(blob.count(b"\n", 0, error.start) + 1, error.start - blob.rfind(b"\n", 0, error.start))
        raise Unreadable(Fault((), "not UTF-8 text", "Save the file as UTF-8.", mark)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable file name"
        hint = "Name an existing file; docs/holdfast.example.yaml is one to start from."
        raise Unreadable(Fault((), f"cannot be read: {reason}", hint)) from None
    if len(blob) > FILE_BYTES_MAX:
        raise Unreadable(Fault((), f"longer than {FILE_BYTES_MAX} bytes", "Make keys with: holdfast keys create."))
    return text


def _no_mapping(tree: Tree) -> Fault:
    hint = "Start with the lines of docs/holdfast.example.yaml."
    message = "the file is empty" if tree.value is None else 'must be a mapping of "name: value" lines'
    return Fault((), message, hint, tree.mark(()))


def _expanded(value: Any, loc: Loc, environ: Mapping[str, str], faults: list[Fault]) -> Any:
    """Replace ${NAME} and ${NAME:-default} in all string values; note those that have no value."""
    if isinstance(value, dict):
        return {name: _expanded(item, (*loc, name), environ, faults) for name, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, (*loc, at), environ, faults) for at, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name is None:
            faults.append(Fault(loc, "not a variable", "Write ${NAME} or ${NAME:-default}."))
        elif default is None and name not in environ:
            hint = f"Set it, or write ${{{name}:-default}}."
            faults.append(Fault(loc, f"environment variable {name} is not set", hint))
        return (environ.get(name, "") if name else "") or default or ""

    return _VARIABLE.sub(variable, value)


def _anchor_paths(raw: dict[str, Any], directory: Path) -> None:
    """Make paths absolute, so that they do not depend on where the gateway is started."""
    data = raw.get("data") or "holdfast-data"
    raw["data"] = str(directory / data) if isinstance(data, str) else data
    models = raw.get("models")
    for model in models if isinstance(models, list) else []:
        if isinstance(model, dict) and isinstance(model.get("tokenizer"), str):
            model["tokenizer"] = str(directory / model["tokenizer"])


def _error(file: str, tree: Tree | None, fault: Fault) -> ConfigError:
    mark = fault.mark or (tree.mark(fault.loc, name=fault.message == "unknown field") if tree else Mark(0, 0))
    return ConfigError(file, mark.line, mark.column, _shown(text(fault.loc)), fault.message, fault.hint)


def _shown(name: str) -> str:
    """Keep what a terminal would act on out of messages; field names come from the file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:200])


def _field_fault(error: Any, raw: Any) -> Fault:
    """Put one of pydantic's errors into words that say what to write instead. Values are never quoted."""
    kind, context = error["type"], error.get("ctx", {})
    loc = tuple(error["loc"])
    if kind == "wrong":
        return Fault(loc, context["message"], context["hint"])
    if kind == "extra_forbidden":
        return Fault(loc, "unknown field", _meant(str(loc[-1]), list(_model_at(loc[:-1]).model_fields)))
    if kind == "missing":
        return Fault(loc, "required, but missing", f'Add "{loc[-1]}: ...".')
    if kind == "literal_error":
        return _choice_fault(loc, raw)
    if kind in _NUMBERS or kind in _BOUNDS:
        return _number_fault(kind, loc)
    return Fault(loc, *_SHAPES.get(kind, (error["msg"][:1].lower() + error["msg"][1:], _EXAMPLE)))


_EXAMPLE = "docs/holdfast.example.yaml shows one."
_SHAPES = {
    "model_type": ("must be a mapping", 'Write "name: value" lines below it.'),
    "tuple_type": ("must be a list", 'Start each item below it with "- ".'),
    "bool_parsing": ("must be true or false", "Write true or false."),
    "bool_type": ("must be true or false", "Write true or false."),
    "string_type": ("must be text", "Write one value, in quotes if it has special characters."),
    "path_type": ("must be a path", "Write one path, relative to this file or absolute."),
    "string_pattern_mismatch": ("has characters that a name must not have", "Use letters, digits and . _ - : /"),
    "string_too_short": ("must not be empty", "Write a name, or remove the line."),
    "string_unicode": ("not valid text", "Use printable characters."),
    "too_short": ("must not be empty", "Add at least one item."),
}


def _choice_fault(loc: Loc, raw: Any) -> Fault:
    choices = get_args(_model_at(loc[:-1]).model_fields[str(loc[-1])].annotation)
    for step in loc:
        raw = raw[step]
    names = [choice for choice in choices if isinstance(choice, str)]  # no number is a misspelt other number
    shown = ", ".join(map(str, choices[:-1])) + f" or {choices[-1]}"
    return Fault(loc, f"must be {shown}", _meant(str(raw), names, "Write one of these."))


def _number_fault(kind: str, loc: Loc) -> Fault:
    field = _model_at(loc[:-1]).model_fields[str(loc[-1])]
    kinds = [field.annotation, *get_args(field.annotation)]  # of «int | None»: it, int, and None
    bounds = [*field.metadata, *(one for kind in kinds for part in _said(kind) for one in part.metadata)]
    most = next(one.le for one in bounds if isinstance(one, Le))
    least = next((one.ge for one in bounds if isinstance(one, Ge)), None)
    above = next((one.gt for one in bounds if isinstance(one, Gt)), None)
    whole = "whole number" if any(getattr(kind, "__origin__", kind) is int for kind in kinds) else "number"
    message = {
        "greater_than_equal": f"must be at least {least}",
        "greater_than": f"must be above {above}",
        "less_than_equal": f"must be at most {most}",
    }
    span = f"from {least} to {most}" if above is None else f"above {above}, {most} at most"
    return Fault(loc, message.get(kind, f"must be a {whole}"), f"Write a {whole} {span}.")


def _said(kind: Any) -> list[FieldInfo]:
    """What an annotated type says of a field."""
    return [part for part in getattr(kind, "__metadata__", ()) if isinstance(part, FieldInfo)]


def _meant(word: str, known: list[str], otherwise: str = "") -> str:
    close = difflib.get_close_matches(word[:64], known, n=1)
    return f'Did you mean "{close[0]}"?' if close else otherwise or f"Known here: {', '.join(known)}."


def _model_at(loc: Loc) -> type[BaseModel]:
    """The model that describes a place: steps through fields, past list positions."""
    model: type[BaseModel] = Config
    for step in loc:
        if isinstance(step, str):
            annotation = model.model_fields[step].annotation  # Listen, or tuple[Replica, ...]
            model = next(kind for kind in (*get_args(annotation), annotation) if isinstance(kind, type))
    return model
