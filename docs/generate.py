"""Writes docs/flags.md from the tables of ramet."""

from pathlib import Path

import ramet
from ramet import CloneFlags

INTRODUCTION = """\
# The flags

Names are those of `<linux/sched.h>` without `CLONE_`. What a flag needs and excludes is checked
before a call is made; on what this kernel has and this process may use, see `ramet.probe()`. This
page is written by `make docs`.

| flag | since Linux | what it does |
|---|---|---|
"""


def flags_page() -> str:
    """Render the table of flags, and the rules."""
    rows = [f"| `{flag.name}` | {flag.since} | {flag.summary} |" for flag in CloneFlags]
    rules: dict[str, None] = {}
    for flag in CloneFlags:
        rules |= dict.fromkeys(ramet.flag_rules(flag))
    sections = [INTRODUCTION + "\n".join(rows), "## What does not go together"]
    sections.append("\n".join(f"- {rule}" for rule in sorted(rules)))
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("flags.md").write_text(flags_page())
