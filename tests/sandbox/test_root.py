"""The root directory of a sandbox."""

from __future__ import annotations

import ast
import errno
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ramet
from ramet import CloneFlags
from ramet.sandbox._root import (
    Bind,
    Devices,
    Directory,
    Entry,
    File,
    Proc,
    Symlink,
    Tmpfs,
    add_root,
    add_sources,
    check,
    normalize,
)
from tests.isolated import run_python

examples = settings(max_examples=60, deadline=None)
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges")

FLAGS = CloneFlags.NEWUSER | CloneFlags.NEWPID | CloneFlags.NEWNS
# What programs need to run at all.
SYSTEM: Mapping[str, Entry] = {
    f"/{name}": Symlink(f"usr/{name}") for name in ("bin", "sbin", "lib", "lib64")
} | {"/usr": Bind("/usr")}
PYTHON: Mapping[str, Entry] = {
    **SYSTEM,
    sys.base_prefix: Bind(sys.base_prefix),
    "/proc": Proc(),
} if not sys.base_prefix.startswith("/usr") else {**SYSTEM, "/proc": Proc()}  # fmt: skip


def run(args: list[str], entries: Mapping[str, Entry]) -> bytes:
    """Run a program in such a root directory; what it writes."""
    checked = check(entries)
    reader, writer = os.pipe()
    with open(reader, "rb") as file:
        try:
            child = ramet.spawn(
                args,
                fds={1: writer, 2: writer},
                flags=FLAGS,
                uid_map=1000,
                gid_map=1000,
                env={"PATH": "/bin", "LC_ALL": "C.UTF-8"},
                before_exec=lambda program: add_root(
                    program, checked, add_sources(program, checked)
                ),
            )
        finally:
            os.close(writer)
        with child:
            return file.read()


def python(code: str, entries: Mapping[str, Entry] | None = None) -> object:
    """Run Python code in such a root directory; what it prints, as a value."""
    executable = os.path.realpath(sys.executable)
    said = run([executable, "-I", "-S", "-c", code], {**PYTHON, **(entries or {})}).decode()
    try:
        return ast.literal_eval(said)
    except (SyntaxError, ValueError):
        raise AssertionError(said) from None


def attempt(action: str) -> str:
    """Code that prints the errno with which something fails, or 0."""
    return f"import os\ntry:\n    {action}\nexcept OSError as e: print(e.errno)\nelse: print(0)"


# --- entries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "usr", "./x", "/", "//", "/a/../b", "/..", "/a\0b", "/./"])
def test_bad_paths(path: str) -> None:
    with pytest.raises(ValueError, match=r"path|root"):
        normalize(path)


@examples
@given(st.lists(st.sampled_from(["a", "b", ".", "", "...", "é"]), min_size=1))
def test_paths(parts: list[str]) -> None:
    kept = [part for part in parts if part not in ("", ".")]
    path = "/" + "/".join(parts)
    if kept:
        assert normalize(path) == "/".join(kept)
    else:
        with pytest.raises(ValueError, match="root"):
            normalize(path)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"/a": Directory(), "//a/": Directory()}, "more than one"),
        ({"/a": File(b""), "/a/b": Directory()}, "no directory"),
        ({"/a": Symlink("b"), "/a/b": Directory()}, "no directory"),
        ({"/a": Bind("/etc/passwd"), "/a/b/c": Directory()}, "no directory"),
        ({"/proc": Proc(), "/proc/x": Directory()}, "nothing can be made"),
    ],
)
def test_bad_entries(entries: dict[str, Entry], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(entries)


def test_order() -> None:
    """Each comes behind the directories that it is in."""
    entries: dict[str, Entry] = {
        "/a/b/c": Directory(),
        "/a-b": Directory(),
        "/a": Tmpfs(1),
        "/a/b": Tmpfs(1),
    }
    assert list(check(entries)) == ["a", "a/b", "a/b/c", "a-b"]


# --- what is there ------------------------------------------------------------------------------


def test_nothing_else_is_there() -> None:
    seen = python("import os; print((sorted(os.listdir('/')), os.getcwd()))")
    top = sys.base_prefix.split("/")[1]
    assert seen == (sorted({"bin", "lib", "lib64", "sbin", "usr", "proc", top}), "/")


def test_files_and_directories() -> None:
    entries: dict[str, Entry] = {
        "/etc/motd": File(b"hello\n", 0o640),
        "/empty": File(b""),
        "/large": File(bytes(range(256)) * 1000),
        "/some/where/deep": Directory(0o700),
        "/some/link": Symlink("../etc/motd"),
        "/space": Tmpfs(1 << 20, mode=0o1777),
        "/space/in/it": File(b"x", 0o666),
    }
    seen = python(
        "import os\n"
        "def mode(path): return oct(os.stat(path).st_mode & 0o7777)\n"
        "print((open('/some/link').read(), mode('/etc/motd'), mode('/etc'),"
        "len(open('/empty').read()),"
        "len(open('/large','rb').read()), mode('/some/where'), mode('/some/where/deep'),"
        "mode('/space'), mode('/space/in/it'), os.getuid(), os.stat('/etc/motd').st_uid,"
        "oct(os.umask(0))))",
        entries,
    )
    assert seen == (
        *("hello\n", "0o640", "0o755", 0, 256_000, "0o755", "0o700", "0o1777", "0o666"),
        *(1000, 1000, "0o22"),
    )


def test_processes_are_those_of_the_namespace() -> None:
    seen = python("import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()))")
    assert seen == [1]


def test_devices() -> None:
    seen = python(
        "import os, pty, tempfile\n"
        "assert os.read(os.open('/dev/zero', os.O_RDONLY), 3) == bytes(3)\n"
        "assert len(os.read(os.open('/dev/urandom', os.O_RDONLY), 3)) == 3\n"
        "open('/dev/null', 'w').write('x')\n"
        "a, b = os.openpty()\n"
        "open('/dev/shm/x', 'w').write('x')\n"
        "print((sorted(os.listdir('/dev')), os.ttyname(b), os.readlink('/dev/stdin')))",
        {"/dev": Devices()},
    )
    names = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert seen == (names.split(), "/dev/pts/0", "/proc/self/fd/0")


# --- what can't be done there -------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/x", "/usr/x", "/dev/x", "/etc/x", "/bin/x"])
def test_nothing_can_be_written(path: str) -> None:
    entries: dict[str, Entry] = {"/dev": Devices(), "/etc": Directory()}
    assert python(attempt(f"open('{path}', 'w')"), entries) == errno.EROFS
    assert python(attempt(f"os.mkdir('{path}')"), entries) == errno.EROFS


def test_binds(tmp_path: Path) -> None:
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("ours")
        (tmp_path / name).chmod(0o777)
    tmp_path.chmod(0o755)
    entries: dict[str, Entry] = {
        "/read": Bind(str(tmp_path / "read")),
        "/write": Bind(str(tmp_path / "write"), writable=True),
        "/alone": Bind(str(tmp_path / "read" / "file")),
        "/alone-write": Bind(str(tmp_path / "write" / "file"), writable=True),
    }
    for path, expected in (
        ("/read/file", errno.EROFS),
        ("/read/new", errno.EROFS),
        ("/alone", errno.EROFS),
        ("/alone-write", 0),
        ("/write/new", 0),
    ):
        assert python(attempt(f"open('{path}', 'w').write('theirs')"), entries) == expected
    assert (tmp_path / "read" / "file").read_text() == "ours"
    assert (tmp_path / "write" / "file").read_text() == "theirs"
    assert (tmp_path / "write" / "new").read_text() == "theirs"


def test_many_binds(tmp_path: Path) -> None:
    """What a program has room for is taken by each for as long as it needs it."""
    (tmp_path / "file").write_text("ours")
    entries: dict[str, Entry] = {f"/a{i}/b/c": Bind(tmp_path / "file") for i in range(100)}
    entries |= {f"/link{i}": Symlink("x") for i in range(100)}
    entries |= {f"/space/{i}": Tmpfs(1 << 12) for i in range(100)}
    seen = python("print(sum(len(open(f'/a{i}/b/c').read()) for i in range(100)))", entries)
    assert seen == 400


def test_binds_in_a_bind(tmp_path: Path) -> None:
    for name in ("outer/inner", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "other" / "file").write_text("seen")
    (tmp_path / "outer" / "file").write_text("")
    entries: dict[str, Entry] = {
        "/outer": Bind(str(tmp_path / "outer"), writable=True),
        "/outer/inner": Bind(str(tmp_path / "other")),
        "/outer/file": Bind(str(tmp_path / "other" / "file")),
    }
    assert python("print(repr(open('/outer/inner/file').read() + open('/outer/file').read()))",
                  entries) == "seenseen"  # fmt: skip
    assert python(attempt("open('/outer/inner/file', 'w')"), entries) == errno.EROFS
    # Nothing is created in a directory of ours.
    with pytest.raises(FileNotFoundError, match="openat2"):
        run(["true"], {**SYSTEM, **entries, "/outer/missing": Tmpfs(1 << 16)})
    assert sorted(os.listdir(tmp_path / "outer")) == ["file", "inner"]


def test_binds_in_a_tmpfs_in_a_bind(tmp_path: Path) -> None:
    for name in ("outer", "outer/space", "inner"):
        (tmp_path / name).mkdir(mode=0o755)
    (tmp_path / "inner" / "file").write_text("inner")
    entries: dict[str, Entry] = {
        **SYSTEM,
        "/outer": Bind(tmp_path / "outer"),
        "/outer/space": Tmpfs(),
        "/outer/space/file": Bind(tmp_path / "inner" / "file"),
        "/outer/space/deep/inner": Bind(tmp_path / "inner"),
        "/outer/space/text": File(b"text"),
    }
    paths = [f"/outer/space/{each}" for each in ("file", "deep/inner/file", "text")]
    assert run(["cat", *paths], entries) == b"innerinnertext"


@root
def test_overlays_over_mounts(tmp_path: Path) -> None:
    """The kernel would refuse it, without a word of the reason."""
    (tmp_path / "a b" / "mount").mkdir(parents=True)
    mounted = f"mount -t tmpfs none '{tmp_path}/a b/mount' && exec \"$@\""
    run_python(
        "from ramet.sandbox._root import *\n"
        f"directory = {str(tmp_path / 'a b')!r}\n"
        "for source in (directory, directory[:-4]):\n"
        "    try:\n"
        "        check({'/x': Overlay(source)})\n"
        "    except ValueError as error:\n"
        "        assert str(error).endswith(f'is mounted: {directory}/mount'), error\n"
        "    else:\n"
        "        assert False\n"
        "check({'/x': Overlay(f'{directory}/mount')})\n",
        before=["unshare", "--mount", "sh", "-c", mounted, "sh"],
    )


def test_hostile_links(tmp_path: Path) -> None:
    """A link in a directory that a program could write to does not lead a mount elsewhere."""
    (tmp_path / "work").mkdir()
    for name, target in (("secret", "/etc"), ("up", "../.."), ("dir", ".")):
        (tmp_path / "work" / name).symlink_to(target)
    for path in ("/work/secret", "/work/up", "/work/dir/x"):
        entries: dict[str, Entry] = {
            **SYSTEM,
            "/work": Bind(str(tmp_path / "work"), writable=True),
            path: Tmpfs(1 << 16),
        }
        with pytest.raises(OSError, match=r"openat2|move_mount"):
            run(["true"], entries)


def test_a_source_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        run(["true"], {**SYSTEM, "/x": Bind(str(tmp_path / "missing"))})
    assert caught.value.filename == str(tmp_path / "missing")


def test_space_is_limited() -> None:
    entries: dict[str, Entry] = {"/space": Tmpfs(1 << 20, inodes=20)}
    much = attempt("os.posix_fallocate(os.open('/space/x', os.O_RDWR | os.O_CREAT), 0, 2 << 20)")
    assert python(much, entries) == errno.ENOSPC
    many = attempt("[open(f'/space/{i}', 'w') for i in range(30)]")
    assert python(many, entries) == errno.ENOSPC


def test_mounts_cannot_be_changed() -> None:
    """Not by a program without capabilities, as those are that exec as an ordinary user."""
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def errno(n): return ctypes.get_errno() if n else 0\n"
        "print([errno(libc.mount(None, b'/usr', None, 32 | 4096, None)),"
        "errno(libc.umount2(b'/usr', 2)), errno(libc.chroot(b'/space')),"
        "errno(libc.unshare(0x20000))])"
    )
    assert python(code, {"/space": Tmpfs(1 << 16)}) == [errno.EPERM] * 4


@root
def test_device_files_and_setuid_programs_of_a_bind_have_no_effect(tmp_path: Path) -> None:
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (tmp_path / "null").chmod(0o666)
    entries: dict[str, Entry] = {"/x": Bind(str(tmp_path), writable=True)}
    assert (tmp_path / "null").read_text() == ""
    assert python(attempt("open('/x/null')"), entries) == errno.EACCES
    seen = run(["cat", "/proc/self/mountinfo"], {**SYSTEM, "/proc": Proc(), **entries}).decode()
    options = {line.split()[4]: set(line.split()[5].split(",")) for line in seen.splitlines()}
    assert {"nosuid", "nodev"} <= options["/x"] & options["/usr"] & options["/"]
    assert "ro" in options["/usr"] & options["/"]


# --- ours -----------------------------------------------------------------------------------------


def test_our_mounts_are_as_before() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    run(["true"], {**SYSTEM, "/proc": Proc(), "/dev": Devices(), "/space": Tmpfs(1 << 16)})
    assert Path("/proc/self/mountinfo").read_text() == before


def test_without_privileges(as_nobody: list[str]) -> None:
    run_python(
        "import os\n"
        "from tests.sandbox import test_root as m\n"
        "assert os.getuid() == 65534\n"
        "entries = {**m.SYSTEM, '/dev': m.Devices(), '/proc': m.Proc(), '/note': m.File(b'hello'),"
        "'/space': m.Tmpfs(1 << 16, mode=0o1777)}\n"
        "code = 'id -u; cat /note; echo x > /space/y; echo > /dev/null; echo $$; echo > /x'\n"
        "said = m.run(['sh', '-c', code], entries).decode().split()\n"
        "assert said[:2] == ['1000', 'hello1'] and 'Read-only' in said, said\n"
        "m.test_our_mounts_are_as_before()\n",
        before=as_nobody,
    )
