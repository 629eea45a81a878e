"""YAML text as a plain tree with the place of everything in it.

Scalars stay text (or None): pydantic turns them into numbers where a number is wanted, so a user named
`no` stays `no`, and no tag can construct anything. Built from parser events, so that limits act before
memory is spent.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

DEPTH_MAX = 16  # levels; the configuration has five
NODES_MAX = 100_000  # a megabyte of text holds more than any fleet needs

Loc = tuple[str | int, ...]
Value = dict[str, Any] | list[Any] | str | None
_NULLS = ("", "~", "null", "Null", "NULL")
_VARIABLE_HINT = 'Inside {...} a variable needs quotes: "${NAME}".'


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text, both counted from 1."""

    line: int = 1
    column: int = 1


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong at `loc`, and what to write instead. mark: only where `loc` does not say it."""

    loc: Loc
    message: str
    hint: str
    mark: Mark | None = None


class Unreadable(Exception):
    """The text is no tree at all; `fault` says where and why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(slots=True)
class Tree:
    """value: the document. names, values: where each field's name and value start. faults: duplicates."""

    value: Value = None
    names: dict[Loc, Mark] = field(default_factory=dict)
    values: dict[Loc, Mark] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def mark(self, loc: Loc, *, name: bool = False) -> Mark:
        """Find the place of a value, or of a field's name; of the nearest parent where it was not written."""
        if name and loc in self.names:
            return self.names[loc]
        while loc and loc not in self.values:
            loc = loc[:-1]
        return self.values.get(loc, Mark())


def read_tree(text: str) -> Tree:
    """Read one YAML document. Raises Unreadable, and nothing else, for any text."""
    tree = Tree()
    try:
        events = _guarded(YAML(typ="safe", pure=True).parse(text))
        for event in events:
            if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent):
                tree.value = _node(event, events, (), tree)
    except Unreadable:
        raise
    except Exception as error:  # the parser raises ValueError, IndexError and others on odd escapes and directives
        raise Unreadable(_syntax_fault(error, text)) from None
    return tree


def _guarded(events: Iterator[Any]) -> Iterator[Any]:
    """Pass events on, and stop at what a configuration has no use for and an attacker has."""
    depth = documents = 0
    for nodes, event in enumerate(events):
        documents += isinstance(event, DocumentStartEvent)
        depth += isinstance(event, MappingStartEvent | SequenceStartEvent)
        depth -= isinstance(event, MappingEndEvent | SequenceEndEvent)
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise _unreadable(event, "anchors and aliases (& and *) are not allowed", "Write the value out.")
        if getattr(event, "tag", None):
            raise _unreadable(event, "tags (!) are not allowed", "Write the plain value; quote it if it starts with !.")
        if depth > DEPTH_MAX or nodes > NODES_MAX:
            raise _unreadable(event, "nested too deeply or too long", "See docs/holdfast.example.yaml for the shape.")
        if documents > 1:
            raise _unreadable(event, "a second document starts here", 'Remove the line "---".')
        yield event


def _node(event: Any, events: Iterator[Any], loc: Loc, tree: Tree) -> Value:
    tree.values[loc] = _mark(event)
    if isinstance(event, MappingStartEvent):
        return _mapping(events, loc, tree)
    if isinstance(event, SequenceStartEvent):
        items: list[Value] = []
        while not isinstance(child := next(events), SequenceEndEvent):
            items.append(_node(child, events, (*loc, len(items)), tree))
        return items
    return None if not event.style and event.value in _NULLS else str(event.value)


def _mapping(events: Iterator[Any], loc: Loc, tree: Tree) -> dict[str, Value]:
    fields: dict[str, Value] = {}
    while not isinstance(name := next(events), MappingEndEvent):
        if not isinstance(name, ScalarEvent):
            raise _unreadable(name, "a field's name must be plain text", 'Write "name: value".')
        at = (*loc, str(name.value))
        if name.value in fields:
            first = tree.names[at].line
            hint = f"Line {first} has it already: keep one."
            tree.faults.append(Fault(at, "the same field twice", hint, _mark(name)))
            _node(next(events), events, at, Tree())  # read past it; the first one counts
            continue
        tree.names[at] = _mark(name)
        fields[str(name.value)] = _node(next(events), events, at, tree)
    return fields


def _mark(event: Any) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


def _unreadable(event: Any, message: str, hint: str) -> Unreadable:
    return Unreadable(Fault((), message, hint, _mark(event)))


def _syntax_fault(error: Exception, text: str) -> Fault:
    """Say where a text stops being YAML, in the parser's words where it has some."""
    if isinstance(error, ReaderError):
        before = text[: error.position] if isinstance(error.position, int) else ""
        mark = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
        return Fault((), "a character that YAML does not allow", "Save the file as plain UTF-8 text.", mark)
    at = error.problem_mark or error.context_mark if isinstance(error, MarkedYAMLError) else None
    mark = Mark(at.line + 1, at.column + 1) if at else Mark()
    lines = text.splitlines()
    line = lines[mark.line - 1] if mark.line <= len(lines) else ""
    problem = getattr(error, "problem", None) or "not readable"
    hint = _VARIABLE_HINT if "${" in line else "Check indentation, quotes and colons on this line and the one above."
    return Fault((), f"not valid YAML: {problem}", hint, mark)
