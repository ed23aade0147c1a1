"""``ramet explain``: what a sandbox enforces, and the system calls that make it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ramet._cli._options import make_parser, parse, sandbox_of

_DESCRIPTION = """\
Show what the sandbox of these options, which are those of ramet run, would enforce here, and the
system calls by which its first process makes it. Nothing is run."""


def main(words: Sequence[str]) -> int:
    """Explain it.

    Args:
        words: the command line behind ``ramet explain``.

    Returns:
        The exit status.
    """
    parser = make_parser("explain", words, _DESCRIPTION)
    parser.usage = "ramet explain [options]"
    parser.add_argument("--json", action="store_true", help="write it as JSON")
    options = parse(parser, words)
    sandbox = sandbox_of(options)
    steps = sandbox.explain()
    if options.json:
        import json  # noqa: PLC0415 - here only

        receipt = [line._asdict() for line in sandbox.receipt]
        content = {"receipt": receipt, "steps": steps.splitlines()}
        sys.stdout.write(f"{json.dumps(content, indent=2)}\n")
        return 0
    rows = [(name, asked, f"{state}: {how}") for name, asked, state, how in sandbox.receipt]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"  {name:{widths[0]}}  {asked:{widths[1]}}  {how}" for name, asked, how in rows]
    sys.stdout.write("\n".join(["What is enforced:", *lines, "", "How it is made:", steps, ""]))
    return 0
