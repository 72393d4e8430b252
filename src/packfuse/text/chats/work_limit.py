"""A limit on the work of one chat template: a model's template is foreign code.

The sandbox of jinja2 stops a template from reaching the interpreter, but not from looping for hours
or from building a text of gigabytes. Here every operation is charged before it is carried out, for
what it reads and writes. One unit is one element, or 64 characters of text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2.utils import Namespace

_UNIT = 64
"""Characters of text in one unit."""

_BASE, _FACTOR = 1_000_000, 100
"""Units that a template may use: `_BASE`, and `_FACTOR` for each unit of its input."""

_LARGEST = 100_000
"""Largest number that a template may hand to a method or filter: a width, a count, a precision."""

_BITS = 1024
"""Largest whole number in a template, in bits."""

_CHEAP = {
    *("get", "length", "count", "first", "last", "default", "d"),
    *("is defined", "is undefined", "is none", "is string", "is mapping", "is iterable"),
    *("is sequence", "is number", "is integer", "is float", "is boolean", "is true", "is false"),
    *("is callable", "is odd", "is even"),
}
"""Methods, filters and tests that take the same time for every size."""

_SHALLOW = {
    *("select", "reject", "selectattr", "rejectattr", "map"),
    *("list", "reverse", "items", "batch", "slice"),
}
"""Filters that read a container, and not what is in it."""

_NUMBER = (int, float)

_LARGE_NUMBER = re.compile(r"[0-9]{6}")


class WorkLimitError(Exception):
    """A template did more than its input can need."""


class WorkLimit:
    """Counts the work of rendering one chat.

    Sizes of containers are computed once, since templates cannot change them.
    """

    def __init__(self, given: Any) -> None:
        """The limit for a template with this input."""
        self._sizes: dict[int, tuple[Any, int]] = {}
        self.left = _BASE
        self.left += _FACTOR * self.size(given)

    def spend(self, units: int) -> None:
        """Charge for work that follows.

        Raises:
            WorkLimitError: where too little is left.
        """
        self.left -= units
        if self.left < 0:
            raise WorkLimitError

    def made(self, value: Any) -> Any:
        """Charge for a new value, which is returned; iterators are charged as they are read."""
        if isinstance(value, Iterator):
            return self.each(value)
        self.spend(self.length(value))
        return value

    def read(self, value: Any) -> Any:
        """Charge for reading a value with all that is in it; the value is returned."""
        self.spend(self.size(value))
        return value

    def each(self, values: Iterable[Any], cost: int = 1) -> Iterator[Any]:
        """The same values, each charged with `cost`."""
        for value in values:
            self.spend(cost)
            yield value

    def size(self, value: Any) -> int:
        """Size of a value with all that is in it, where everything counts as often as it occurs."""
        if isinstance(value, Namespace):
            # Every other attribute is a variable of the template.
            names: Mapping[str, Any] = object.__getattribute__(value, "_Namespace__attrs")
            return 1 + self._total(names.values())
        if isinstance(value, Mapping):
            return self._of_container(value, (*value.keys(), *value.values()))
        if isinstance(value, list | tuple | set | frozenset):
            return self._of_container(value, value)
        if type(value).__name__ in ("dict_keys", "dict_values", "dict_items"):
            return 1 + self._total(value)
        return self.length(value)

    def _of_container(self, container: Any, parts: Iterable[Any]) -> int:
        known = self._sizes.get(id(container))
        if known is None:
            # The container is kept, so that its id stays its own.
            known = self._sizes[id(container)] = (container, 1 + self._total(parts))
        return known[1]

    def _total(self, parts: Iterable[Any]) -> int:
        total = 0
        for part in parts:
            total += self.size(part)
            if total > _BASE * _FACTOR:
                raise WorkLimitError
        return total

    def numbers(self, values: Iterable[Any]) -> None:
        """Refuse numbers that are too large for an argument."""
        for value in values:
            if isinstance(value, int | float) and not abs(value) <= _LARGEST:
                raise WorkLimitError
            if isinstance(value, tuple):
                self.numbers(value)

    def operator(self, name: str, left: Any, right: Any) -> None:
        """Charge for a binary operator."""
        self.spend(self.length(left) + self.length(right))
        if name == "%" and isinstance(left, str | bytes):
            self.formatting(left, (right,))
        elif name == "*" and not (isinstance(left, _NUMBER) and isinstance(right, _NUMBER)):
            count, value = (left, right) if isinstance(left, int) else (right, left)
            self.spend(max(0, int(count)) * self.length(value))
        elif name == "**":
            bits = math.log2(max(2.0, min(abs(left), 1e300))) * min(abs(right), 1e9)
            if bits > _BITS:
                raise WorkLimitError

    @staticmethod
    def length(value: Any) -> int:
        """Size of a value without what is in it."""
        if isinstance(value, str | bytes):
            return 1 + len(value) // _UNIT
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise WorkLimitError
        return 1 + (len(value) if isinstance(value, Sequence | Mapping) else 0)

    def formatting(self, form: str | bytes, values: Sequence[Any]) -> None:
        """Charge for putting values into a format, each of whose fields may repeat them all."""
        text = form.decode("latin-1") if isinstance(form, bytes) else form
        if _LARGE_NUMBER.search(text):
            raise WorkLimitError
        self.numbers(values)
        fields = text.count("%") + text.count("{")
        self.spend(self.size(form) + fields * sum(map(self.size, values)))

    def method(self, owner: Any, name: str, values: Sequence[Any]) -> None:
        """Charge for a method of a text or a filter on it, before it is called.

        Args:
            owner: The text or other object.
            name: Name of the method or filter.
            values: Its arguments.
        """
        if name in _CHEAP:
            return self.spend(1)
        self.numbers(values)
        own = self.length(owner) if name in _SHALLOW else self.size(owner)
        given = sum(map(self.size, values))
        self.spend(own + given)
        self.spend(self._repeated(owner, name, values, own, given))

    def _repeated(self, owner: Any, name: str, values: Sequence[Any], own: int, given: int) -> int:
        """What a method or filter costs where its result can be larger than its input."""
        text = isinstance(owner, str | bytes)
        if text and name in ("format", "format_map"):
            self.formatting(owner, values)
        elif text and name == "replace" and values:
            found = owner.count(values[0]) if values[0] else len(owner) + 1
            return found * given
        elif text and name == "join":
            return own * sum(map(self.length, values))
        elif text and name in ("translate", "expandtabs", "indent"):
            return (1 + len(owner)) * (given + sum(map(_width, values)))
        elif name in ("join", "tojson"):
            return own * (given + sum(map(_width, values)))
        elif name == "sum" and not all(isinstance(value, _NUMBER) for value in values[1:]):
            return own * own
        elif name in ("sort", "dictsort", "unique", "groupby"):
            return own * own.bit_length()
        return 0


def _width(value: Any) -> int:
    """The white space that a number asks for, in units."""
    return int(abs(value)) // _UNIT if isinstance(value, _NUMBER) else 0
