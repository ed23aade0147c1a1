"""The package as it is installed."""

from __future__ import annotations

import importlib.metadata
import inspect
import pickle
import re
import types
from pathlib import Path

import pytest

import ramet
from ramet import futures, lowlevel, sandbox
from tests.isolated import run_python

PACKAGE = Path(ramet.__file__).parent


def test_public_names() -> None:
    assert sorted(ramet.__all__) == sorted(set(ramet.__all__))
    public = {name for name in vars(ramet) if not name.startswith("_")}
    assert public - set(ramet.__all__) <= {"aio", "futures", "mp", "sandbox"}
    assert set(ramet.__all__) <= public


@pytest.mark.parametrize("name", ramet.__all__)
def test_public_name(name: str) -> None:
    thing = getattr(ramet, name)
    if isinstance(thing, type | types.FunctionType):
        assert thing.__module__ == "ramet"
        assert thing.__qualname__ == name
        assert pickle.loads(pickle.dumps(thing)) is thing  # noqa: S301
    else:
        assert isinstance(thing, int | types.ModuleType)


def test_modules_are_private() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {"_native"}
    modules |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    public = {name for name in modules if not name.startswith("_")}
    assert public == {"aio", "futures", "lowlevel", "mp", "sandbox"}


def test_each_name_has_one_home() -> None:
    """What is exported is not exported by a second module too."""
    assert not set(lowlevel.__all__) & (set(ramet.__all__) - {"clone"})
    assert lowlevel.clone.__module__ == lowlevel.clone3.__module__ == "ramet.lowlevel"


@pytest.mark.parametrize("name", sandbox.__all__)
def test_sandbox_name(name: str) -> None:
    thing = getattr(sandbox, name)
    assert thing.__module__ == ("ramet" if name in ramet.__all__ else "ramet.sandbox")
    assert pickle.loads(pickle.dumps(thing)) is thing  # noqa: S301


@pytest.mark.parametrize("name", lowlevel.__all__)
def test_lowlevel_name(name: str) -> None:
    assert getattr(lowlevel, name) is not None


def test_what_import_brings_along() -> None:
    heavy = "ctypes _ctypes cffi _cffi_backend subprocess asyncio multiprocessing threading numpy"
    run_python(
        f"import sys; before = set(sys.modules); heavy = set({heavy.split()})\n"
        "import ramet\n"
        "assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)\n"
    )


def test_files_for_c() -> None:
    assert (Path(ramet.get_include()) / "ramet.h").is_file()
    library = Path(ramet.get_library_dir())
    assert (library / "libramet.a").is_file()
    assert (library / "pkgconfig" / "ramet.pc").is_file()


def test_version_of_pkgconfig() -> None:
    text = (Path(ramet.get_library_dir()) / "pkgconfig" / "ramet.pc").read_text()
    assert f"Version: {importlib.metadata.version('ramet')}" in text


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_native.pyi").is_file()


def test_the_stub_is_complete() -> None:
    from ramet import _native

    stub = (PACKAGE / "_native.pyi").read_text()
    names = {name for name in dir(_native) if not name.startswith("__")}
    declared = set(re.findall(r"^(?:def|class) (\w+)|^(\w+): Final", stub, re.MULTILINE))
    assert {first or second for first, second in declared} == names
    for kind in (_native.Pool, _native.Task):
        body = re.split(r"^(?=class |@final|def )", stub, flags=re.MULTILINE)
        text = next(part for part in body if part.startswith(f"class {kind.__name__}"))
        members = set(re.findall(r"^    (?:def )?(\w+)[(:]", text, re.MULTILINE))
        own = {name for name in vars(kind) if not name.startswith("__")}
        assert members - {"__new__"} == own


def test_no_source_of_c_is_shipped() -> None:
    assert not list(PACKAGE.rglob("*.[cSo]"))
    assert not list(PACKAGE.rglob("meson.build"))


# --- docstrings ---------------------------------------------------------------------------------


def callables() -> dict[str, object]:
    found: dict[str, object] = {}
    for module in (ramet, lowlevel, futures, sandbox):
        for name in module.__all__:
            thing = getattr(module, name)
            path = f"{module.__name__}.{name}"
            if isinstance(thing, types.FunctionType):
                found[path] = thing
            elif isinstance(thing, type):
                found[path] = thing
                for member, value in vars(thing).items():
                    if not member.startswith("_") and isinstance(
                        value, types.FunctionType | property
                    ):
                        found[f"{path}.{member}"] = value
    return found


CALLABLES = callables()


def test_callables_are_found() -> None:
    expected = {"ramet.clone", "ramet.Child.wait", "ramet.ExitStatus.code", "ramet.lowlevel.clone3"}
    assert expected <= set(CALLABLES)


@pytest.mark.parametrize("path", CALLABLES)
def test_docstring(path: str) -> None:
    """A sentence; with parameters, all of them under Args, and what is raised under Raises."""
    thing = CALLABLES[path]
    text = inspect.getdoc(thing)
    assert text, path
    assert re.match(r"[A-Z].*[.:]$", text.splitlines()[0]), text
    if not isinstance(thing, types.FunctionType):
        return
    parameters = [name for name in inspect.signature(thing).parameters if name != "self"]
    described = re.findall(r"^    (\w+): ", text.partition("Args:")[2].partition("\n\n")[0], re.M)
    if path in {"ramet.Child.wait", "ramet.Thread.join"} or len(parameters) > 1:
        assert "Raises:" in text
    # One call may describe closely related parameters together.
    assert [name for name in parameters if name not in described] == []
