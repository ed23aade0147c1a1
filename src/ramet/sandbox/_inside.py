"""What runs in a sandbox for `Sandbox.call`: a function, or source, in a child of a zygote.

Our side writes the function, and is trusted. What is read there of what becomes of it is data.
"""

from __future__ import annotations

import ast
import linecache
import os
import pickle
import sys
import traceback
import types
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NoReturn

from ramet.sandbox import _data


def call(file: int, function: bytes, *buffers: Any) -> NoReturn:
    """Call a function, write what becomes of it, and end.

    Args:
        file: what it is written to.
        function: a pickle of it, its arguments and keyword arguments.
        buffers: go with the pickle.
    """
    try:
        fn, args, kwargs = pickle.loads(function, buffers=buffers)  # noqa: S301 - our side's
        value = fn(*args, **kwargs)
        outcome, code = _data.encode({"value": value}), 0
    except SystemExit as left:
        outcome, code = [], _exit_code(left)
    except BaseException as error:  # noqa: BLE001 - it is told
        outcome, code = _data.encode({"error": _words(error)}), 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # whatever the function has made of it
            stream.flush()
    try:
        _write(file, outcome)
    except OSError as error:  # the limit for the size of files
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        _write(file, _data.encode({"error": _words(error)}))
        code = 1
    os._exit(code)


def _exit_code(left: SystemExit) -> int:
    """Do as the interpreter does at its end."""
    if left.code is None:
        return 0
    if isinstance(left.code, int):
        return left.code & 0xFF
    with suppress(Exception):
        print(left.code, file=sys.stderr)
    return 1


def _words(error: BaseException) -> str:
    """Render an exception, from the function on."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename == __file__:
        first = first.tb_next
    return "".join(traceback.format_exception(type(error), error, first))


def _write(file: int, parts: Iterable[bytes | memoryview]) -> None:
    for part in parts:
        written = os.write(file, part)
        while written < len(part):
            written += os.write(file, memoryview(part)[written:])


def run_source(source: str, name: str, values: dict[str, Any]) -> Any:
    """Run source as a main module.

    Args:
        source: Python.
        name: what tracebacks call it.
        values: names that it finds.

    Returns:
        The value of its last line, if that is an expression; else None.
    """
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    tree = ast.parse(source, name)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    module = types.ModuleType("__main__")
    module.__dict__.update(values)
    sys.modules["__main__"] = module
    exec(compile(tree, name, "exec"), module.__dict__)  # noqa: S102 - what it is for
    if not isinstance(last, ast.Expr):
        return None
    expression = compile(ast.Expression(last.value), name, "eval")
    return eval(expression, module.__dict__)  # noqa: S307 - the same
