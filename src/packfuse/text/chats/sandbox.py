"""Chat templates: jinja2 in a sandbox, with a limit on the work of each rendering."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from packfuse.text.chats.work_limit import WorkLimit, WorkLimitError

_limit: ContextVar[WorkLimit] = ContextVar("work limit of a chat template")

_LONGEST = 1_000_000
"""Longest template, in characters."""

_LEFT_OUT = ("urlize", "striptags", "wordwrap", "xmlattr", "pprint", "filesizeformat", "urlencode")
"""Filters for web pages, whose work cannot be told from their input."""


_PASSED = ("_loop_vars", "_block_vars", "caller")
"""Arguments that compiled templates add to a call."""


class TemplateRefusalError(Exception):
    """A template raised an error, or refused the messages."""


def render_template(source: str, variables: Mapping[str, Any]) -> str:
    """The text of a chat template.

    Args:
        source: The template.
        variables: What it can read: plain data only.

    Raises:
        TemplateRefusalError: for any error of the template.
        WorkLimitError: if it does more than its input can need.

    Example:
        >>> render_template("{{ word | upper }}!", {"word": "hi"})
        'HI!'
    """
    limit = WorkLimit(variables)
    token = _limit.set(limit)
    try:
        compiled = _compiled(source)
        # Joined here, so that each part is charged before the next is made.
        return "".join(limit.made(part) for part in compiled.generate(variables))
    except WorkLimitError:
        raise
    except MemoryError as error:
        raise WorkLimitError from error
    except Exception as error:
        # Whatever a template raises is its own error: TypeError and RecursionError are common.
        said = str(error) if isinstance(error, TemplateError) else repr(error)
        raise TemplateRefusalError(said) from error
    finally:
        _limit.reset(token)


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    if len(source) > _LONGEST:
        raise WorkLimitError
    environment = _Sandbox()
    tree = _charging(environment.parse(source))
    return Template.from_code(environment, environment.compile(tree), environment.globals)


def _read(value: Any) -> Any:
    """Operands of comparisons and values that are written."""
    return _limit.get().read(value)


def _sliced(value: Any) -> Any:
    """A value of which a slice is copied."""
    return _limit.get().made(value)


def _each(values: Any, cost: int) -> Any:
    """The values of a loop, each charged with the work of the loop's own text."""
    return _limit.get().each(values, cost)


def _joined(*values: Any) -> str:
    """The operator `~`."""
    return "".join(str(_read(value)) for value in values)


_ADDED = (_read, _sliced, _each, _joined)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox of transformers with every operation charged.

    Differences from jinja2's own: constants are not folded, and filters for web pages are missing.
    """

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            finalize=_read,
            cache_size=0,
        )
        self.filters["tojson"] = _tojson
        for name in _LEFT_OUT:
            self.filters.pop(name, None)
        self.filters = {name: _charged(name, own) for name, own in self.filters.items()}
        tests: Any = self.tests
        self.tests = {name: _charged(f"is {name}", own) for name, own in tests.items()}
        self.globals = {
            "range": self.globals["range"],
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "dict": _Dict(),
            "namespace": _Names,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        limit = _limit.get()
        limit.operator(operator, left, right)
        return limit.made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if obj in _ADDED:
            return obj(*args)
        limit = _limit.get()
        bound = getattr(obj, "__wrapped__", obj)  # jinja2 wraps `str.format`
        given = [*args, *(value for name, value in kwargs.items() if name not in _PASSED)]
        limit.method(getattr(bound, "__self__", None), getattr(bound, "__name__", ""), given)
        return limit.made(super().call(context, obj, *args, **kwargs))


def _charging(tree: nodes.Template) -> nodes.Template:
    """Add charges where compiled templates would work without asking the sandbox."""
    for loop in tree.find_all(nodes.For):
        text = sum(len(part.data) for part in loop.find_all(nodes.TemplateData))
        loop.iter = _call("_each", loop.iter, nodes.Const(1 + text // 64))
    for comparison in tree.find_all(nodes.Compare):
        comparison.expr = _call("_read", comparison.expr)
        for operand in comparison.ops:
            operand.expr = _call("_read", operand.expr)
    for item in tree.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Slice):
            item.node = _call("_sliced", item.node)
    joined: nodes.Template = _JoinCalls().visit(tree)
    return joined


class _JoinCalls(NodeTransformer):
    """Makes a call of every operator `~`."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        return _call("_joined", *node.nodes) if isinstance(node, nodes.Concat) else node


def _call(name: str, *values: nodes.Node) -> nodes.Expr:
    """A call of one of this module's functions, which templates cannot name themselves."""
    return nodes.Call(nodes.ImportedName(f"{__name__}.{name}"), list(values), [], None, None)


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is charged. Whether it takes the context first is kept by `wraps`."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        limit = _limit.get()
        owner, *rest = args[skipped:] or (None,)
        values = [*rest, *kwargs.values()]
        limit.method(owner, name, values)
        return limit.made(function(*args, **kwargs))

    return charged


class _Generation(Extension):
    """The tag `generation`, which marks in training what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Names(Namespace):
    """`namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise TemplateError(f"{name!r} cannot be the name of a variable in a namespace")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it; jinja2's own filter escapes characters of HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    _limit.get().formatting(form, ())
    return datetime.now().strftime(form)
