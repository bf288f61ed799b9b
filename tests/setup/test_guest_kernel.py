"""The kernel of virtual machines: the order of its modules, and an archive that is the same for the same files."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from scripts.setup import guest_kernel, initramfs, recipe
from scripts.setup.report import SetupError

DEP = """kernel/a/virtio-blk.ko.xz:
kernel/net/top.ko.xz: kernel/net/middle.ko.xz kernel/net/bottom.ko.xz
kernel/net/middle.ko.xz: kernel/net/bottom.ko.xz
kernel/net/bottom.ko.xz:
"""


def test_modules_come_after_what_they_need_and_once() -> None:
    dependencies = guest_kernel.parse_dependencies(DEP)
    order = guest_kernel.load_order(["virtio_blk", "top", "middle", "ext4"], dependencies, {"ext4"})
    assert [guest_kernel.module_name(file) for file in order] == ["virtio_blk", "bottom", "middle", "top"]


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(SetupError, match="no module erofs"):
        guest_kernel.load_order(["erofs"], guest_kernel.parse_dependencies(DEP), set())


def test_one_package_is_locked() -> None:
    ((name, version),) = recipe.pinned_versions(guest_kernel.DIRECTORY / "kernel.lock").items()
    assert name.startswith("linux-image-")
    assert version[0].isdigit()


def test_an_archive_does_not_depend_on_the_order_of_its_files() -> None:
    entries = [initramfs.file("d/f", b"xyz", 0o755), initramfs.directory("d"), initramfs.file("a", b"")]
    assert initramfs.pack(entries) == initramfs.pack(reversed(entries))


@pytest.mark.parametrize("names", [["a", "a"], ["/a"], [""], ["TRAILER!!!"]])
def test_names_that_can_not_be_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="in the archive"):
        initramfs.pack(initramfs.file(name, b"") for name in names)


def test_an_archive_has_the_format_that_others_read(tmp_path: Path) -> None:
    entries = [initramfs.directory("d"), initramfs.file("d/f", b"xyz", 0o755), initramfs.file("d/g", b"1234")]
    subprocess.run(["cpio", "-i", "-m", "--quiet"], input=initramfs.pack(entries), cwd=tmp_path, check=True)
    file = tmp_path / "d/f"
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode), file.stat().st_mtime) == (b"xyz", 0o755, 0)
    assert (tmp_path / "d/g").read_bytes() == b"1234"
