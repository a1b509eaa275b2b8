"""How words of a command line become a verb's options: strictly, lazily, and with the defaults of ``vista.toml``.

- a verb's module is imported when the verb is called, not to list it;
- only ``-`` followed by digits is a negative number (an int64 user may be one); any other unknown option is an error;
- an option that takes one value may be given once.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from tools import settings
from tools.options import OptionGroup
from tools.verbs import VERBS, load

NEGATIVE = re.compile(r"-\d+")
PASSED_ON = ("drill",)
"""Verbs that hand all words after their first to what it names, which has options of its own."""


class Verb(TyperCommand):
    """One verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.info_name in PASSED_ON and args and args[0][:1] != "-":
            args = ["--", *args]
        elif not ctx.resilient_parsing:  # else completion asks, with half a command line
            args = self._options_first(ctx, args)
        left = super().parse_args(ctx, args)
        for option in self.get_params(ctx):
            given = ctx.params.get(option.name)
            for value in given if isinstance(given, (list, tuple)) else [given]:
                if isinstance(value, float) and not math.isfinite(value):
                    told = f"expected a number, found {value}"
                    raise typer.BadParameter(told, param_hint=option.opts[-1], ctx=ctx)
        return left

    def _options_first(self, ctx: Any, words: Sequence[str]) -> list[str]:
        """The same words as options, ``--``, positional words; so that a negative number is no option."""
        known = {word: p for p in self.get_params(ctx) if p.param_type_name == "option"
                 for word in (*p.opts, *p.secondary_opts)}  # fmt: skip
        options, rest, given, left = list[str](), list[str](), set[str](), list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                rest += left
                break
            if word[:1] != "-" or word == "-" or NEGATIVE.fullmatch(word):
                rest.append(word)
                continue
            options.append(word)
            name, equals, _ = word.partition("=")
            if not word.startswith("--"):
                name, equals = word[:2], word[2:]
            option = known.get(name)
            if not isinstance(option, TyperOption) or option.is_flag or option.count:
                continue
            if not option.multiple and option.name in given:
                raise typer.BadParameter("given twice; expected once", param_hint=name, ctx=ctx)
            given.add(option.name)
            if not equals and left:
                options.append(left.pop(0))
        return [*options, "--", *rest] if rest else options


class Verbs(TyperGroup):
    """``vista``: the verbs, each loaded when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb as ``vista --help`` and completion list it: its first line, read without importing it."""
        if cmd_name in self.commands or cmd_name not in VERBS:
            return self.commands.get(cmd_name)
        return TyperCommand(cmd_name, help=first_line(cmd_name), rich_help_panel=VERBS[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in VERBS:
            self.commands[args[0]] = command(args[0])
            if not ctx.resilient_parsing and "--help" not in args:
                found = settings.read(settings.home_in(args[1:]))
                ctx.default_map = {args[0]: found.defaults(args[0], self.commands[args[0]])}
                _of_some_verb(found, self.commands[args[0]])
        else:  # what a misspelt one may mean
            self.commands = {verb: self.get_command(ctx, verb) for verb in VERBS}
        return super().resolve_command(ctx, args)


def _of_some_verb(found: settings.Settings, asked: Any) -> None:
    """Refuse a line above the tables that is an option of no verb: it would say nothing, ever.

    Raises:
        ConfigError
    """
    left = {*found.common} - {*settings.option_names(asked)}
    for verb in VERBS:
        left -= {*settings.option_names(command(verb))} if left else set()
    if left:
        raise found.error(f"expected options of some verb above the tables, found {min(left)!r}")


def command(verb: str) -> Any:
    """The command object of a verb."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command(verb, cls=Verb, rich_help_panel=VERBS[verb])(spread(load(verb)))
    return typer.main.get_command(app)


def spread(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb with the options of each :class:`~tools.options.OptionGroup` in the place of the value they make."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        notes = getattr(parameter.annotation, "__metadata__", ())
        group = next((note for note in notes if isinstance(note, OptionGroup)), None)
        own = [parameter] if group is None else group.parameters()
        if group is not None:
            groups[parameter.name] = group.make, [p.name for p in own]
        parameters += (p.replace(kind=p.KEYWORD_ONLY) for p in own)

    def called(**given: Any) -> Any:
        made = {name: make(**{n: given.pop(n) for n in names}) for name, (make, names) in groups.items()}
        return verb(**given, **made)

    called.__doc__ = verb.__doc__
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


def first_line(verb: str) -> str:
    """First line of the docstring of a verb's ``command``."""
    source = (Path(__file__).parent / "verbs" / f"{verb}.py").read_text(encoding="utf-8")
    functions = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "command")
    return (ast.get_docstring(next(functions)) or "").partition("\n\n")[0]
