"""A C function in a child process, in new namespaces, and in a thread.

Run it with ``make demo``. It needs a C compiler (CC, by default cc).
"""

import ctypes
import mmap
import os
import subprocess
import tempfile
from pathlib import Path

import ramet
from ramet import CloneFlags


class Count(ctypes.Structure):
    """struct count of quickstart.c."""

    _fields_ = [("below", ctypes.c_long), ("primes", ctypes.c_long)]


class Place(ctypes.Structure):
    """struct place of quickstart.c."""

    _fields_ = [("pid", ctypes.c_int), ("namespaces", ctypes.c_char * 64 * 3)]


def build() -> ctypes.CDLL:
    """Compile quickstart.c to a shared object and load it."""
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "quickstart.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source], check=True
        )
        return ctypes.CDLL(str(library))


def in_a_child(library: ctypes.CDLL) -> None:
    """Start a process that shares our memory, and see its result in it."""
    print("A process that shares this one's memory (VM|VFORK):")
    count = Count(below=200_000)
    flags = CloneFlags.VM | CloneFlags.VFORK
    with ramet.clone(library.count_primes, count, flags) as child:
        assert isinstance(child, ramet.Child)
        status = child.wait()
    assert status.rusage is not None
    assert status.code == count.primes % 100
    print(f"  {child}")
    print(f"  found {count.primes} primes below {count.below}")
    print(f"  used {status.rusage.ru_utime * 1000:.1f} ms of processor time")


def in_namespaces(library: ctypes.CDLL) -> None:
    """Start a process in new namespaces, and see that it is somewhere else."""
    print("A process with a copy of the memory, in new user, pid and uts namespaces:")
    shared = mmap.mmap(-1, ctypes.sizeof(Place))
    flags = CloneFlags.NEWUSER | CloneFlags.NEWPID | CloneFlags.NEWUTS
    try:
        child = ramet.clone(library.look_around, shared, flags)
    except OSError as error:
        print(f"  not here: {error}")
        return
    assert isinstance(child, ramet.Child)
    status = child.wait()
    place = Place.from_buffer_copy(shared)
    print(f"  {child}")
    print(f"  which was pid {place.pid} to itself and {child.pid} to us")
    for name, theirs in zip(("user", "pid", "uts"), place.namespaces, strict=True):
        ours = os.readlink(f"/proc/self/ns/{name}")
        print(f"  {name:4}: {theirs.value.decode()}, ours is {ours}")
    assert status.code == 0
    assert place.pid == 1


def in_a_thread(library: ctypes.CDLL) -> None:
    """Start a thread of our own process, and get what the function returns."""
    print("A thread of this process (VM|SIGHAND|THREAD):")
    count = Count(below=100_000)
    flags = CloneFlags.VM | CloneFlags.SIGHAND | CloneFlags.THREAD
    thread = ramet.clone(library.count_primes, count, flags)
    assert isinstance(thread, ramet.Thread)
    value = thread.join(timeout=60)
    print(f"  {thread} returned {value}")
    print(f"  found {count.primes} primes below {count.below}")


def a_refusal(library: ctypes.CDLL) -> None:
    """See what an error looks like."""
    print("What cannot be is refused before anything is started:")
    try:
        ramet.clone(library.count_primes, None, CloneFlags.THREAD)
    except ValueError as error:
        print(f"  {error}")


def main() -> None:
    """Show it all."""
    library = build()
    in_a_child(library)
    in_namespaces(library)
    in_a_thread(library)
    a_refusal(library)


if __name__ == "__main__":
    main()
