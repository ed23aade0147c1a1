"""isolated: a function whose calls run in fresh children, wherever it is carried to.

What is carried is the function and the options; a zygote is made by the process that calls it.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, Unpack, overload

from ramet._child_options import ChildOptions
from ramet._deadlines import check_timeout
from ramet._values import find_cloudpickle
from ramet._zygote import Zygote

_P = ParamSpec("_P")
_T = TypeVar("_T")

_MOST_ZYGOTES = 8


class _Settings(NamedTuple):
    preload: tuple[str, ...]
    main: bool
    timeout: float | None
    options: ChildOptions


@overload
def isolated(
    fn: Callable[_P, _T],
    /,
    *,
    preload: Iterable[str] = ...,
    main: bool = ...,
    timeout: float | None = ...,
    **options: Unpack[ChildOptions],
) -> Isolated[_P, _T]: ...


@overload
def isolated(
    fn: None = None,
    /,
    *,
    preload: Iterable[str] = ...,
    main: bool = ...,
    timeout: float | None = ...,
    **options: Unpack[ChildOptions],
) -> Callable[[Callable[_P, _T]], Isolated[_P, _T]]: ...


def isolated(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    preload: Iterable[str] = (),
    main: bool = True,
    timeout: float | None = None,
    **options: Unpack[ChildOptions],
) -> Any:
    """Make a function each call of which runs in a fresh child, as by `Zygote.call`.

    It can be pickled if `fn` can, and does the same wherever it is called: in a worker of Dask, Ray
    or Spark, in a pool of processes, in a daemonic process. As a decorator it is used with options
    or without. A process that calls it has one zygote for all functions with the same `preload` and
    `main`, which ends with the process; it has at most eight, and ends the one that was used least
    recently.

    Args:
        fn: the function; without it a decorator is returned.
        preload: as of `Zygote`.
        main: the same.
        timeout: seconds that a call may take; then the child is killed.
        options: of the children, as of `Zygote.using`.

    Returns:
        The callable, with the name, the documentation and the signature of `fn`. Its calls raise
        what `BoundZygote.call` raises.

    Raises:
        TypeError: `fn` cannot be called; there is no such option.
        ValueError: `timeout` is not a number.
    """
    unknown = options.keys() - ChildOptions.__optional_keys__
    if unknown:
        raise TypeError(f"isolated() has no option {min(unknown)!r}")
    settings = _Settings(tuple(preload), main, check_timeout(timeout), options)
    if fn is None:
        return functools.partial(Isolated, settings=settings)
    return Isolated(fn, settings)


class Isolated(Generic[_P, _T]):
    """What `isolated` returns."""

    __wrapped__: Callable[_P, _T]
    __qualname__: str

    def __init__(self, fn: Callable[_P, _T], settings: _Settings) -> None:
        if not callable(fn):
            raise TypeError(f"{fn!r} cannot be called")
        functools.update_wrapper(self, fn)
        self._settings = settings

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        preload, main, timeout, options = self._settings
        bound = _zygote(preload, main).using(timeout=timeout, **options)
        carried: Isolated[_P, _T] | _Name = self
        if main and _is_in_main(self):
            carried = _Name(self.__module__, self.__qualname__)  # the zygote has it too
        return bound.call(_run, carried, args, kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Be a method, as a function is."""
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Go by name if this is what is found there, else by the function.

        A function that was decorated cannot go by its name, where this object is found, and other
        machines do not have our main module. What cannot go by name goes by cloudpickle.
        """
        found = _is_found(self)
        cloudpickle = find_cloudpickle()
        if found and (self.__module__ != "__main__" or cloudpickle is None):
            return str(self.__qualname__)
        if cloudpickle is None or _by_value.now or _is_found(self.__wrapped__):
            return Isolated, (self.__wrapped__, self._settings)
        _by_value.now = True
        try:
            return _load, (cloudpickle.dumps(self),)
        finally:
            _by_value.now = False

    def __repr__(self) -> str:
        return f"<ramet.isolated {self.__wrapped__!r}>"


class _Name(NamedTuple):
    module: str
    qualname: str


class _ByValue(threading.local):
    """Whether cloudpickle is at work for us in this thread."""

    now = False


_by_value = _ByValue()


def _run(carried: Isolated[..., _T] | _Name, args: Any, kwargs: Any) -> _T:
    """Call the function itself; this is what the child does."""
    thing: Any = carried
    if isinstance(carried, _Name):
        thing = _find(*carried)
    value: _T = thing.__wrapped__(*args, **kwargs)
    return value


def _find(module: str, qualname: str) -> Any:
    return functools.reduce(getattr, qualname.split("."), sys.modules[module])


def _is_in_main(thing: Any) -> bool:
    """Whether something is of the main module, and that is a file, which can be imported."""
    if thing.__module__ != "__main__" or not _is_found(thing):
        return False
    return hasattr(sys.modules["__main__"], "__file__")


def _is_found(thing: Any) -> bool:
    """Whether something is what its name says."""
    try:
        found = _find(thing.__module__, thing.__qualname__)
    except Exception:  # noqa: BLE001 - whatever is wrong with its name
        return False
    return found is thing


def _load(data: bytes) -> Any:
    return find_cloudpickle().loads(data)


# --- the zygotes of this process ----------------------------------------------------------------

_lock = threading.Lock()
_zygotes: dict[tuple[tuple[str, ...], bool], Zygote] = {}  # the one used last is the last


def _zygote(preload: tuple[str, ...], main: bool) -> Zygote:
    oldest = None
    with _lock:
        zygote = _zygotes.pop((preload, main), None) or _new_zygote(preload, main)
        _zygotes[preload, main] = zygote
        if len(_zygotes) > _MOST_ZYGOTES:
            oldest = _zygotes.pop(next(iter(_zygotes)))
    if oldest is not None:
        oldest.close()
    return zygote


def _new_zygote(preload: tuple[str, ...], main: bool) -> Zygote:
    """Make one that also has what each of its children would have to import."""
    ours = [name for name in (__name__, "cloudpickle") if sys.modules.get(name)]
    return Zygote((*preload, *ours), main=main)


@atexit.register
def _close_all() -> None:
    with _lock:
        zygotes = list(_zygotes.values())
        _zygotes.clear()
    for zygote in zygotes:
        zygote.close()


def _forget() -> None:
    """Start anew in a fork: zygotes and lock are those of the parent's threads."""
    global _lock  # noqa: PLW0603 - whoever held it is not here
    _lock = threading.Lock()
    _zygotes.clear()


os.register_at_fork(after_in_child=_forget)
