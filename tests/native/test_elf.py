"""What the linker and the loader are told: by the objects, and by the installed files."""

import re
import struct
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from elftools.elf.constants import P_FLAGS, SH_FLAGS
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import NoteSection, SymbolTableSection

import ramet
from ramet import _native
from tests.native import toolchain

DF_TEXTREL = 4
DF_BIND_NOW = 8

# GNU_PROPERTY_X86_FEATURE_1_AND with IBT and SHSTK, _AARCH64_FEATURE_1_AND with BTI and PAC.
PROPERTIES = {
    "x86_64": ("GNU_PROPERTY_X86_FEATURE_1_AND", 3),
    "aarch64": ("GNU_PROPERTY_AARCH64_FEATURE_1_AND", 3),
}
LANDING_PADS = {"x86_64": bytes.fromhex("f30f1efa"), "aarch64": struct.pack("<I", 0xD503245F)}

# Distances within the object, by number since pyelftools has no names for RISC-V. All others go
# through the GOT, the PLT or the thread pointer.
DIRECT_RELOCATIONS = {
    "x86_64": {2},  # PC32
    "aarch64": {282, 283},  # JUMP26, CALL26
    "riscv64": {16, 17, 43, 44, 45, 51},  # BRANCH, JAL, ALIGN, RVC_BRANCH, RVC_JUMP, RELAX
}

has_landing_pads = pytest.mark.parametrize("target", LANDING_PADS, scope="module")


@pytest.fixture(scope="module")
def trampoline(target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ELFFile]:
    """Yield the object of a trampoline, built as meson.build does."""
    directory = tmp_path_factory.mktemp(target)
    path = toolchain.assemble(target, directory, *toolchain.HARDENING[target])
    with ELFFile.load_from_path(str(path)) as elf:
        yield elf


@pytest.fixture(scope="module", params=["child.c", "program.c"])
def child(
    request: pytest.FixtureRequest, target: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ELFFile]:
    """Yield an object of what runs in a child, built as meson.build does."""
    output = tmp_path_factory.mktemp(target) / "child.o"
    include = toolchain.source(target).parent
    flags = (*toolchain.HARDENING[target], *toolchain.CHILD_ONLY, "-std=gnu11", "-Werror")
    code = toolchain.NATIVE / request.param
    toolchain.run(toolchain.compiler(target), *flags, f"-I{include}", "-c", code, "-o", output)
    with ELFFile.load_from_path(str(output)) as elf:
        yield elf


@pytest.fixture(scope="module")
def extension() -> Iterator[ELFFile]:
    with ELFFile.load_from_path(_native.__file__) as elf:
        yield elf


def assert_stack_is_not_executable(elf: ELFFile) -> None:
    note = elf.get_section_by_name(".note.GNU-stack")
    assert note, "without it the linker makes the stack executable"
    assert not note["sh_flags"] & SH_FLAGS.SHF_EXECINSTR


def assert_only_the_routines_are_global(elf: ELFFile) -> None:
    symbols = [each for each in toolchain.symbols(elf) if each["st_info"]["bind"] != "STB_LOCAL"]
    assert {each.name for each in symbols} == set(toolchain.ROUTINES)
    assert {each["st_info"]["type"] for each in symbols} == {"STT_FUNC"}
    assert {each["st_other"]["visibility"] for each in symbols} == {"STV_HIDDEN"}


def undefined(elf: ELFFile, table: str = ".symtab") -> list[str]:
    _null, *symbols = toolchain.symbols(elf, table)
    return [each.name for each in symbols if each["st_shndx"] == "SHN_UNDEF"]


def test_one_source_for_each_architecture() -> None:
    sources = {path.parent.name: path.read_text() for path in toolchain.NATIVE.rglob("clone.S")}
    assert set(sources) == set(toolchain.TARGETS)
    for text in sources.values():
        assert not re.search("__x86_64__|__aarch64__|__riscv", text)
    header = (toolchain.HEADERS / "ramet.h").read_text()
    assert not re.search("asm|inline|static", header)


def test_stack_is_not_executable(trampoline: ELFFile) -> None:
    assert_stack_is_not_executable(trampoline)


def test_only_the_routines_are_global(trampoline: ELFFile) -> None:
    assert_only_the_routines_are_global(trampoline)


def test_trampoline_needs_nothing(trampoline: ELFFile) -> None:
    assert undefined(trampoline) == []


def test_trampoline_has_no_data(trampoline: ELFFile) -> None:
    writable = [
        section.name
        for section in trampoline.iter_sections()
        if section["sh_flags"] & SH_FLAGS.SHF_WRITE and section["sh_size"]
    ]
    assert writable == []


@has_landing_pads
def test_control_flow_property(trampoline: ELFFile, target: str) -> None:
    section = trampoline.get_section_by_name(".note.gnu.property")
    assert isinstance(section, NoteSection)
    (note,) = section.iter_notes()
    found = {each["pr_type"]: each["pr_data"] for each in note["n_desc"]}
    name, wanted = PROPERTIES[target]
    assert found[name] & wanted == wanted


@has_landing_pads
@pytest.mark.parametrize("routine", toolchain.ROUTINES)
def test_landing_pad(trampoline: ELFFile, target: str, routine: str) -> None:
    symbol = toolchain.symbol(trampoline, routine)
    section = trampoline.get_section(symbol["st_shndx"])
    assert section.data()[symbol["st_value"] :].startswith(LANDING_PADS[target])


def test_child_needs_nothing(child: ELFFile) -> None:
    assert undefined(child) == []


def test_child_has_no_state(child: ELFFile) -> None:
    state = SH_FLAGS.SHF_WRITE | SH_FLAGS.SHF_TLS
    held = [
        section.name
        for section in child.iter_sections()
        if section["sh_flags"] & state and section["sh_size"]
    ]
    assert held == []


def test_child_reaches_nothing_through_tables(child: ELFFile, target: str) -> None:
    code = [
        section
        for section in child.iter_sections()
        if isinstance(section, RelocationSection)
        and child.get_section(section["sh_info"])["sh_flags"] & SH_FLAGS.SHF_EXECINSTR
    ]
    kinds = {each["r_info_type"] for section in code for each in section.iter_relocations()}
    assert kinds <= DIRECT_RELOCATIONS[target]


def test_extension_exports_its_entry_alone(extension: ELFFile) -> None:
    exported = {
        each.name
        for each in toolchain.symbols(extension, ".dynsym")
        if each["st_shndx"] != "SHN_UNDEF" and each["st_info"]["bind"] != "STB_LOCAL"
    }
    assert exported == {"PyInit__native"}


def test_no_symbol_is_the_c_library_s(extension: ELFFile) -> None:
    names = {
        each.name
        for section in extension.iter_sections()
        if isinstance(section, SymbolTableSection)
        for each in section.iter_symbols()
    }
    assert "PyInit__native" in names
    assert not names & {"__clone", "clone", "__clone3", "clone3"}


def test_extension_stack_is_not_executable(extension: ELFFile) -> None:
    (stack,) = extension.iter_segments("PT_GNU_STACK")
    assert not stack["p_flags"] & P_FLAGS.PF_X


def test_extension_is_read_only_once_loaded(extension: ELFFile) -> None:
    assert list(extension.iter_segments("PT_GNU_RELRO"))
    section = extension.get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    tags = {tag["d_tag"]: tag["d_val"] for tag in section.iter_tags()}
    assert tags.get("DT_FLAGS", 0) & DF_BIND_NOW or "DT_BIND_NOW" in tags
    assert "DT_TEXTREL" not in tags
    assert not tags.get("DT_FLAGS", 0) & DF_TEXTREL


def test_no_segment_is_writable_and_executable(extension: ELFFile) -> None:
    both = P_FLAGS.PF_W | P_FLAGS.PF_X
    assert not any(each["p_flags"] & both == both for each in extension.iter_segments())


def test_installed_archive(tmp_path: Path) -> None:
    archive = Path(ramet.get_library_dir()) / "libramet.a"
    toolchain.run(toolchain.require("ar"), "x", archive, "--output", tmp_path)
    (member,) = tmp_path.iterdir()
    with ELFFile.load_from_path(str(member)) as elf:
        assert_stack_is_not_executable(elf)
        assert_only_the_routines_are_global(elf)
        assert undefined(elf) == []


def test_installed_pkg_config_file() -> None:
    directory = Path(ramet.get_library_dir()) / "pkgconfig"
    text = (directory / "ramet.pc").read_text()
    assert f"Version: {version('ramet')}" in text
    done = toolchain.run(
        toolchain.require("pkg-config", "pkgconf"),
        *("--variable=includedir", "ramet"),
        env={"PKG_CONFIG_PATH": str(directory)},
    )
    assert Path(done.stdout.strip(), "ramet.h").is_file()
