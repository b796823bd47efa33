"""Files appear whole or not at all, orphans are removed, damage is noticed, folders are locked."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from inctrl_lite import files
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import (
    check_writable,
    fill_folder,
    locked,
    read_checked,
    remove_orphans,
    write_checked,
    write_text,
    write_whole,
)

needs_ordinary_user = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)


@pytest.fixture(autouse=True)
def forget_folders():
    """Folders whose orphans this process has removed already."""
    files._remove_orphans_once.cache_clear()


def half_then_full(temporary: Path) -> None:
    """A disk that is full after half of the file."""
    temporary.write_bytes(b"half of")
    raise OSError(errno.ENOSPC, "No space left on device")


def half_then_error(temporary: Path) -> None:
    temporary.write_bytes(b"half of")
    raise ValueError("a fault in the program")


@pytest.mark.parametrize(("write", "error"), [(half_then_full, InctrlError), (half_then_error, ValueError)])
def test_a_write_that_fails_halfway_changes_nothing(write, error, tmp_path):
    path = write_text(tmp_path / "scores.csv", "the old scores")
    with pytest.raises(error):
        write_whole(path, write)
    assert path.read_text() == "the old scores"
    with pytest.raises(error):
        write_whole(tmp_path / "new.csv", write)
    assert os.listdir(tmp_path) == ["scores.csv"]


def test_nobody_sees_half_a_file(tmp_path):
    path = write_text(tmp_path / "scores.csv", "the old scores")

    def write(temporary: Path) -> None:
        temporary.write_text("the new")
        assert path.read_text() == "the old scores"
        temporary.write_text("the new scores")

    assert write_whole(path, write) == path
    assert path.read_text() == "the new scores"
    assert os.listdir(tmp_path) == ["scores.csv"]


def test_the_new_file_takes_the_place_of_the_old_one_in_one_step(tmp_path):
    path = write_text(tmp_path / "scores.csv", "the old scores")
    os.link(path, tmp_path / "old.csv")  # another name of the old file, which nobody may write into
    write_text(path, "the new scores")
    assert (tmp_path / "old.csv").read_text() == "the old scores"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "disk is full: make space"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EROFS, "folder that is writable"),
        (errno.EIO, "writable and has space"),
    ],
)
def test_the_message_names_the_file_and_the_remedy(number, remedy, tmp_path):
    def fail(temporary: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(InctrlError, match=rf"cannot write .*scores.csv: .*{remedy}"):
        write_whole(tmp_path / "scores.csv", fail)


@pytest.mark.parametrize("name", ["a" * 251 + ".csv", "\u00e4" * 120 + ".png", "a." + "b" * 250])
def test_names_as_long_as_a_file_system_allows(name, tmp_path):
    assert write_text(tmp_path / name, "text").read_text() == "text"
    with pytest.raises(InctrlError, match="Choose a shorter name"):
        write_text(tmp_path / ("a" * 300), "text")


def test_the_temporary_file_keeps_the_ending(tmp_path):
    endings = []
    write_whole(tmp_path / "map.png", lambda temporary: (endings.append(temporary.suffix), temporary.touch()))
    assert endings == [".png"]


def killed_while_writing(folder: Path) -> list[Path]:
    """Temporary files that a killed process left in a folder."""
    code = f"""
        import os, signal
        from inctrl_lite.files import write_whole
        def write(temporary):
            temporary.write_text("half of")
            os.kill(os.getpid(), signal.SIGKILL)
        write_whole({str(folder / "scores.csv")!r}, write)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    return [path for path in folder.iterdir() if path.name.startswith(".scores")]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not there")
def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (orphan,) = killed_while_writing(tmp_path)
    running = tmp_path / orphan.name.replace(
        f"-{files._TEMPORARY.fullmatch(orphan.name)['process']}-", f"-{os.getpid()}-"
    )
    machine = f"{int(files._machine(), 16) ^ 1:04x}"
    elsewhere = tmp_path / orphan.name.replace(f"-{files._machine()}", f"-{machine}")
    mine = tmp_path / ".scores-2024-final.csv"
    for path in (running, elsewhere, mine):
        path.write_text("not an orphan")
    write_text(tmp_path / "other.txt", "text")
    assert not orphan.exists()
    assert running.exists() and elsewhere.exists() and mine.exists()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not there")
def test_removed_orphans_are_returned(tmp_path):
    left = killed_while_writing(tmp_path)
    assert remove_orphans(tmp_path) == left and len(left) == 1
    assert remove_orphans(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not there")
def test_folders_appear_whole_and_their_orphans_go(tmp_path):
    def half(temporary: Path) -> None:
        (temporary / "a").write_text("half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InctrlError, match="cannot write .*data: .*disk is full"):
        fill_folder(tmp_path / "data", half)
    assert not list(tmp_path.iterdir())
    (orphan,) = killed_while_writing(tmp_path)
    orphan.unlink()
    orphan.mkdir()
    (orphan / "a").write_text("half of")
    files._remove_orphans_once.cache_clear()
    fill_folder(tmp_path / "data", lambda temporary: (temporary / "a").write_text("all of it"))
    assert os.listdir(tmp_path) == ["data"] and (tmp_path / "data" / "a").read_text() == "all of it"


def test_a_checked_file_comes_back_as_it_was(tmp_path):
    for data in (b"", b'{"scores": [1, 2]}\n', b"\n# blake2b ", bytes(range(256)) * 40):
        path = write_checked(tmp_path / "cell.json", data)
        assert read_checked(path) == data
    assert read_checked(tmp_path / "missing.json") is None
    assert read_checked(path / "below a file") is None


def test_every_kind_of_damage_is_noticed_and_named(tmp_path):
    path = write_checked(tmp_path / "cell.json", b'{"scores": [1, 2]}')
    whole = path.read_bytes()
    broken = [
        b"",
        whole[: len(whole) // 2],
        whole[:-1],
        whole + b"\n",
        b'{"scores": [1, 2]}',
        b"\0" * len(whole),
    ]
    broken += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]  # one bit
    for content in broken:
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=r"cell\.json is damaged"):
            assert read_checked(path) is None


def test_a_checked_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(InctrlError, match="cannot read"):
        read_checked(tmp_path)


HOLD = """
    import sys, time
    from inctrl_lite.files import locked
    with locked({!r}):
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds `tmp_path / "run"`."""
    code = textwrap.dedent(HOLD.format(str(tmp_path / "run")))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_is_held_by_one_process_at_a_time(holder, tmp_path):
    with pytest.raises(InctrlError, match=rf"run is in use by process {holder.pid} on .*: wait"):
        with locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "another"):
        pass


def test_a_killed_process_holds_nothing(holder, tmp_path):
    holder.kill()
    holder.wait()
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock-holder").read_text().startswith(f"process {os.getpid()} ")


def test_a_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="a fault"):
        with locked(tmp_path):
            raise ValueError("a fault")
    with locked(tmp_path):
        with pytest.raises(InctrlError, match="in use by process"):  # also within one process
            with locked(tmp_path):
                pass
    assert not (tmp_path / ".lock-holder").exists()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InctrlError, match="cannot lock .*file"):
        with locked(tmp_path / "file" / "run"):
            pass


def test_check_writable_makes_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InctrlError, match="file is a file"):
        check_writable(tmp_path / "file" / "run")


@needs_ordinary_user
def test_a_locked_folder_is_not_writable(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    try:
        for folder in (closed, closed / "below" / "it"):
            with pytest.raises(InctrlError, match="closed is read-only"):
                check_writable(folder)
    finally:
        closed.chmod(0o700)
