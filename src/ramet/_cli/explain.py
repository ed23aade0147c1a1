"""``ramet explain``: what a sandbox enforces, and the system calls that make it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ramet._cli._options import OPTIONS, drafted, own
from ramet._cli._words import Option, Page, read

_DESCRIPTION = """\
Show what the sandbox of these options, which are those of ramet run, would enforce here, and the
system calls by which its first process makes it. Nothing is run."""

PAGE = Page(
    "ramet explain [options]",
    _DESCRIPTION,
    {**OPTIONS, "output": (Option("--json", "", own("json"), "write it as JSON"),)},
)


def main(words: Sequence[str]) -> int:
    """Explain it.

    Args:
        words: the command line behind ``ramet explain``.

    Returns:
        The exit status.
    """
    draft = drafted(read(PAGE, words))
    sandbox = draft.finish()
    steps = sandbox.explain()
    if "json" in draft.own:
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
