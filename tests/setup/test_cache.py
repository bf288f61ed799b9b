"""The cache: keys, atomic publication, links, the lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.setup import cache, shell
from scripts.setup.report import SetupError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUTCH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_directory_is_the_named_one_else_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.root() == tmp_path / "cache"
    monkeypatch.delenv("HUTCH_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.root() == tmp_path / ".cache" / "hutch"


def test_a_key_changes_with_every_byte_name_and_mode(tmp_path: Path) -> None:
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_text("x")
    seen = {cache.content_key("part", files=[file], base=tmp_path)}
    seen.add(cache.content_key("parts", files=[file], base=tmp_path))
    seen.add(cache.content_key("par", "t", files=[file], base=tmp_path))
    file.chmod(0o755)
    seen.add(cache.content_key("part", files=[file], base=tmp_path))
    file.write_text("y")
    seen.add(cache.content_key("part", files=[file], base=tmp_path))
    file.rename(other)
    seen.add(cache.content_key("part", files=[other], base=tmp_path))
    assert len(seen) == 6


def test_a_key_does_not_depend_on_where_the_checkout_is(tmp_path: Path) -> None:
    keys = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        keys.add(cache.content_key(files=[tmp_path / name / "file"], base=tmp_path / name))
    assert len(keys) == 1


def test_what_was_built_appears_at_once_and_whole(own_cache: Path) -> None:
    final = own_cache / "things" / "key"
    with cache.building(final) as made:
        (made / "file").write_text("x")
        assert not final.exists()
    assert (final / "file").read_text() == "x"
    assert list((own_cache / "tmp").iterdir()) == []


def test_a_failed_build_leaves_nothing(own_cache: Path) -> None:
    final = own_cache / "things" / "key"
    with pytest.raises(RuntimeError), cache.building(final) as made:
        (made / "file").write_text("x")
        raise RuntimeError
    assert not final.exists()
    assert list((own_cache / "tmp").iterdir()) == []


def test_a_killed_build_is_swept_by_the_next_run(own_cache: Path) -> None:
    left = own_cache / "tmp" / "left"
    (left / "deep").mkdir(parents=True)
    (own_cache / "tmp" / "file").write_text("x")
    cache.sweep()
    assert list((own_cache / "tmp").iterdir()) == []


def test_a_tree_with_a_mount_below_it_is_not_removed() -> None:
    # /proc is below / on every machine; nothing is removed, so this is safe to ask for.
    with pytest.raises(SetupError, match="still mounted"):
        cache.discard(Path("/proc"))


def test_a_link_is_made_once_and_moved_when_its_target_moves(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "link"
    assert cache.link(place, tmp_path / "one") is True
    assert cache.link(place, tmp_path / "one") is False
    assert cache.link(place, tmp_path / "two") is True
    assert place.readlink() == tmp_path / "two"
    assert [path.name for path in place.parent.iterdir()] == ["link"]


def test_a_link_replaces_a_file_but_never_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert cache.link(tmp_path / "file", tmp_path / "one") is True
    (tmp_path / "directory").mkdir()
    with pytest.raises(SetupError, match="is a directory"):
        cache.link(tmp_path / "directory", tmp_path / "one")


def test_a_second_setup_waits_for_the_first() -> None:
    said: list[str] = []
    script = (
        "import sys; from scripts.setup import cache\n"
        "with cache.locked(print):\n    print('locked', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=shell.CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "locked\n"
        stdin = other.stdin

        def hear(text: str) -> None:
            said.append(text)
            # Only now does the other one end: without waiting for it, this would never be reached.
            stdin.close()

        with cache.locked(hear):
            assert said == ["another setup is running; waiting for it"]
    assert other.returncode == 0


def test_a_failing_program_is_reported_with_the_end_of_what_it_printed() -> None:
    script = "import sys\nfor number in range(100): print('line', number)\nsys.exit(3)"
    with pytest.raises(SetupError) as caught:
        shell.logged([sys.executable, "-c", script], "test-of-setup")
    (shell.LOG_DIR / "test-of-setup.log").unlink()
    assert "(3)" in str(caught.value)
    assert "line 99" in str(caught.value)
    assert "line 0\n" not in str(caught.value)


def test_a_program_that_does_not_exist_is_reported() -> None:
    with pytest.raises(SetupError, match="can't be started"):
        shell.logged(["hutch-no-such-program"], "test-of-setup")
    (shell.LOG_DIR / "test-of-setup.log").unlink()
    assert shell.output_of(["hutch-no-such-program"]) is None
