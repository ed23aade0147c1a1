"""Command lines: tables of options, read and explained. Knows nothing of what they are for.

It is not argparse, whose import and tables would take ``ramet run`` longer than the sandbox does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ramet._cli._errors import CommandError, reason
from ramet._record import Record

Change = Callable[..., None]
_WIDTH, _INDENT = 100, 26


class Option(NamedTuple):
    """An option.

    Attributes:
        names: it, and what else it is called.
        words: what follows it.
        change: what it does, given what is changed and these words.
        help: the same for people.
    """

    names: str
    words: str
    change: Change
    help: str


class Page(Record):
    """What there is to know of a command.

    Attributes:
        usage: its command line.
        description: what it does.
        options: they, by titles.
        epilog: what else is good to know.
    """

    usage: str
    description: str
    options: Mapping[str, Sequence[Option]]
    epilog: str = ""

    def __str__(self) -> str:
        """The help."""
        parts = [f"usage: {self.usage}", self.description]
        for title, options in self.options.items():
            parts.append("\n".join([f"{title}:", *map(_explain, options)]))
        return "\n\n".join([*parts, self.epilog]).rstrip() + "\n"


class Line(Record):
    """A command line that was read.

    Attributes:
        changes: names of options, what they do, and what followed them.
        rest: what comes behind the options.
    """

    changes: list[tuple[str, Change, list[str]]]
    rest: list[str]

    def apply(self, target: object) -> None:
        """Make all changes.

        Raises:
            CommandError: what followed an option makes no sense.
        """
        for name, change, words in self.changes:
            try:
                change(target, *words)
            except (CommandError, TypeError, ValueError, OSError) as error:
                raise CommandError(f"{' '.join([name, *words])}: {reason(error)}") from error


class HelpWanted(Exception):  # noqa: N818 - it is no error
    """Somebody wants to read the page instead."""


def read(page: Page, words: Sequence[str]) -> Line:
    """Read a command line: options up to ``--``, or the first word that is none.

    Raises:
        CommandError: there is no such option, or too little behind it.
        HelpWanted: it has ``--help`` among its options.
    """
    known = {
        name: option
        for group in page.options.values()
        for option in group
        for name in option.names.split()
    }
    changes = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word in {"-h", "--help"}:
            raise HelpWanted(page)
        name, equals, value = word.partition("=")
        if name not in known:
            raise CommandError(f"there is no option {name}{_hint(name, known)}")
        option = known[name]
        wanted = len(option.words.split())
        given = [value] if equals else []
        missing = wanted - len(given)
        if missing < 0:
            raise CommandError(f"{name} is followed by nothing")
        given, rest = given + rest[:missing], rest[missing:]
        if len(given) < wanted:
            raise CommandError(f"{name} must be followed by {option.words}")
        changes.append((name, option.change, given))
    return Line(changes, rest)


def read_options(page: Page, words: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read a command line that has nothing but options, which change a dictionary.

    Raises:
        CommandError: as `read`.
        HelpWanted: as `read`.
    """
    line = read(page, words)
    if line.rest:
        raise CommandError(f"what is {line.rest[0]!r} for?")
    options = dict(defaults)
    line.apply(options)
    return options


def put(name: str, value_of: Callable[[str], object] | None = None) -> Change:
    """Make the change that puts a value into a dictionary: True, for an option without words."""

    def change(options: dict[str, object], *words: str) -> None:
        options[name] = value_of(*words) if value_of else True

    return change


def _hint(name: str, known: Mapping[str, Option]) -> str:
    import difflib  # noqa: PLC0415 - for mistakes only

    close = difflib.get_close_matches(name, known, 1)
    return f"; was {close[0]} meant?" if close else ""


def _explain(option: Option) -> str:
    import textwrap  # noqa: PLC0415 - for the help only

    head = "  " + ", ".join(option.names.split()) + (f" {option.words}" if option.words else "")
    lines = textwrap.wrap(option.help, _WIDTH - _INDENT)
    if len(head) < _INDENT - 1:
        lines[0] = f"{head:{_INDENT}}{lines[0]}"
        first, others = lines[:1], lines[1:]
    else:
        first, others = textwrap.wrap(head, _WIDTH, subsequent_indent="  "), lines
    return "\n".join([*first, *(" " * _INDENT + line for line in others)])
