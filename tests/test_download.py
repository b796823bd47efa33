"""Fetching and unpacking, from a server on this machine that is now and then a bad one."""

import gzip
import hashlib
import io
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from layouts import LAYOUTS, cifar10, elpv, mnist, visa

from inctrl_lite.data import archives, download
from inctrl_lite.data.archives import unpack
from inctrl_lite.data.catalogue import CATALOGUE
from inctrl_lite.data.manifest import read_manifest
from inctrl_lite.data.prepare import prepare
from inctrl_lite.errors import InctrlError


@pytest.fixture
def server(monkeypatch):
    """A web server: `files` by path; `breaks` says after how many bytes each of the next answers ends.

    `ranges`: whether it can send the rest of a file; `asked`: the ranges it was asked for.
    """
    state = SimpleNamespace(files={}, breaks=[], ranges=True, asked=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            state.asked.append(asked)
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = int(asked[len("bytes=") : -1]) if asked and state.ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : state.breaks.pop(0) if state.breaks else None])

        def log_message(self, *_):
            pass

    monkeypatch.setattr(download, "PAUSE", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        state.address = f"http://127.0.0.1:{web.server_port}"
        yield state
        web.shutdown()
        thread.join()


def packed(root, suffix: str) -> bytes:
    """The files below `root` as an archive."""
    file = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as pack:
            for path in sorted(root.rglob("*")):
                pack.write(path, path.relative_to(root))
    else:
        with tarfile.open(
            fileobj=file, mode={".tar": "w", ".tar.xz": "w:xz", ".tar.gz": "w:gz"}[suffix]
        ) as pack:
            pack.add(root, ".")
    return file.getvalue()


@pytest.fixture
def offered(server, monkeypatch, tmp_path):
    """VisA (a tar file, its checksum known) and ELPV (a zip file, unknown) on the server: their bytes."""
    found = {}
    for name, layout, suffix in (("visa", visa, ".tar"), ("elpv", elpv, ".zip")):
        found[name] = packed(layout(tmp_path / "original" / name), suffix)
        server.files[f"/{name}"] = found[name]
        digest = hashlib.sha256(found[name]).hexdigest() if name == "visa" else None
        info = replace(CATALOGUE[name], url=f"{server.address}/{name}", sha256=digest)
        monkeypatch.setitem(CATALOGUE, name, info)
    return found


def left(folder) -> list[str]:
    """Names of what is in a folder, hidden and temporary files too."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- the network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["visa", "elpv"])
def test_a_data_set_is_fetched_unpacked_and_ready(server, offered, tmp_path, name):
    raw = download.download(name, tmp_path / "raw")
    assert left(raw) == sorted([CATALOGUE[name].archive, CATALOGUE[name].archive.partition(".")[0]])
    assert read_manifest(prepare(name, raw, tmp_path / "out"))
    download.download(name, raw)
    assert len(server.asked) == 1  # it is there


def test_a_broken_connection_is_taken_up_where_it_broke(server, offered, tmp_path):
    server.breaks = [1000, 5000, 5000]  # positions: the last answer brings nothing new
    raw = download.download("visa", tmp_path / "raw")
    assert server.asked == [None, "bytes=1000-", "bytes=5000-", "bytes=5000-"]
    assert (raw / "VisA_20220922.tar").read_bytes() == offered["visa"]


def test_a_server_that_cannot_resume_sends_all_again(server, offered, tmp_path):
    server.breaks, server.ranges = [1000], False
    raw = download.download("visa", tmp_path / "raw")
    assert (raw / "VisA_20220922.tar").read_bytes() == offered["visa"]


@pytest.mark.parametrize("name", ["visa", "elpv"])
def test_a_short_file_leaves_nothing(server, offered, tmp_path, name):
    server.breaks = [1000] * 50
    with pytest.raises(
        InctrlError, match=r"could not be fetched .*the connection ended after 1,000 of [\d,]+ bytes"
    ):
        download.download(name, tmp_path / "raw")
    assert left(tmp_path / "raw") == []
    assert len(server.asked) == download.TRIES + 1  # five more that bring no new byte


@pytest.mark.parametrize(("name", "why"), [("visa", "does not match"), ("elpv", "damaged or cut short")])
def test_a_wrong_file_leaves_nothing(server, offered, tmp_path, name, why):
    server.files[f"/{name}"] = b"<html>please accept our licence</html>"
    with pytest.raises(InctrlError, match=why):
        download.download(name, tmp_path / "raw")
    assert left(tmp_path / "raw") == []
    server.files[f"/{name}"] = offered[name]
    assert len(left(download.download(name, tmp_path / "raw"))) == 2  # and the next try is not in its way


def test_an_address_that_is_gone_says_what_to_do_by_hand(server, offered, tmp_path):
    server.files.clear()
    with pytest.raises(
        InctrlError, match=r"(?s)VisA could not be fetched .*404.*by hand:.*spot-diff.*CC BY 4.0"
    ):
        download.download("visa", tmp_path / "raw")
    assert left(tmp_path / "raw") == [] and len(server.asked) == 1  # the answer is clear


def test_nobody_listens(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.setitem(CATALOGUE, "elpv", replace(CATALOGUE["elpv"], url="http://127.0.0.1:9/elpv"))
    with pytest.raises(InctrlError, match=r"ELPV could not be fetched"):
        download.download("elpv", tmp_path / "raw")
    assert left(tmp_path / "raw") == []


# --- by hand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mvtec", "aitex", "brainmri", "headct"])
def test_what_has_no_address_is_explained(tmp_path, name):
    info = CATALOGUE[name]
    with pytest.raises(InctrlError) as told:
        download.download(name, tmp_path / "raw")
    for part in (info.home, info.licence, info.by_hand, str(tmp_path / "raw"), f"data prepare {name}"):
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("name", "archive"), [("headct", "archive.zip"), ("cifar10", "cifar-10-python.tar.gz")]
)
def test_an_archive_fetched_by_hand_is_unpacked(tmp_path, name, archive):
    (tmp_path / "raw").mkdir()
    original = LAYOUTS[name](tmp_path / "original")
    (tmp_path / "raw" / archive).write_bytes(packed(original, archive[archive.index(".") :]))
    raw = download.download(name, tmp_path / "raw")
    assert read_manifest(prepare(name, raw, tmp_path / "out"))


def test_an_archive_that_is_not_whole_is_kept_and_named(tmp_path):
    (tmp_path / "mvtec_anomaly_detection.tar.xz").write_bytes(b"half of it")
    with pytest.raises(
        InctrlError, match="mvtec_anomaly_detection.tar.xz is not the file it should be, or not all"
    ):
        download.download("mvtec", tmp_path)
    assert left(tmp_path) == ["mvtec_anomaly_detection.tar.xz"]


# --- torchvision -------------------------------------------------------------------------------------


def offer_mnist(server, monkeypatch, tmp_path) -> None:
    from torchvision import datasets

    names = [path.name for path in sorted(mnist(tmp_path / "original").iterdir())]
    for name in names:
        server.files[f"/{name}"] = (tmp_path / "original" / name).read_bytes()
    resources = [(name, hashlib.md5(server.files[f"/{name}"]).hexdigest()) for name in names]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server.address}/"])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)


def test_mnist_comes_through_torchvision(server, monkeypatch, tmp_path, capsys):
    offer_mnist(server, monkeypatch, tmp_path)
    raw = download.download("mnist", tmp_path / "raw")
    assert len(read_manifest(prepare("mnist", raw, tmp_path / "out"))) == 10
    asked = len(server.asked)
    download.download("mnist", raw)
    assert len(server.asked) == asked  # it is there
    assert capsys.readouterr().err == ""


def test_a_wrong_file_of_mnist_leaves_nothing(server, monkeypatch, tmp_path):
    offer_mnist(server, monkeypatch, tmp_path)
    server.files["/train-labels-idx1-ubyte.gz"] = b"another file"
    with pytest.raises(InctrlError, match="MNIST could not be fetched from torchvision's addresses"):
        download.download("mnist", tmp_path / "raw")
    assert left(tmp_path / "raw") == []


def test_a_broken_torchvision_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(
        InctrlError, match=r"(?s)torchvision is missing or does not fit .*by hand.*cifar.html"
    ):
        download.download("cifar10", tmp_path / "raw")
    assert left(tmp_path / "raw") == []


# --- archives ----------------------------------------------------------------------------------------


def tarred(path, name: str, kind=tarfile.REGTYPE, target: str = ""):
    with tarfile.open(path, "w") as pack:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        pack.addfile(member)
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_archives_are_unpacked_whole(tmp_path, suffix):
    original = cifar10(tmp_path / "original")
    archive = tmp_path / f"a{suffix}"
    archive.write_bytes(packed(original, suffix))
    unpack(archive, tmp_path / "new" / "a")
    for path in original.rglob("*"):
        copy = tmp_path / "new" / "a" / path.relative_to(original)
        assert copy.is_dir() if path.is_dir() else copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_half_downloaded_archive_is_named(tmp_path, suffix, part):
    whole = packed(elpv(tmp_path / "original"), suffix)
    archive = tmp_path / f"elpv{suffix}"
    archive.write_bytes(whole[: int(part * len(whole))])
    if suffix == ".tar" and part == 0.9:
        archive.write_bytes(whole[: whole.rindex(b"\x89PNG") + 20])  # the end of a tar file is padding
    with pytest.raises(InctrlError, match=r"elpv\S* is damaged or cut short"):
        unpack(archive, tmp_path / "new")
    assert left(tmp_path) == sorted([archive.name, "original"])


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.xz"])
def test_a_damaged_archive_is_named(tmp_path, suffix):
    (tmp_path / "original").mkdir()
    numbers = " ".join(str(n * n % 9973) for n in range(20_000))
    (tmp_path / "original" / "numbers.txt").write_text(numbers)
    whole = packed(tmp_path / "original", suffix)
    archive = tmp_path / f"a{suffix}"
    for place in range(1000, len(whole) - 1000, 2500):  # decoders fail in several ways
        archive.write_bytes(whole[:place] + bytes([255] * 50) + whole[place + 50 :])
        with pytest.raises(InctrlError, match=r"a\S* is damaged or cut short"):
            unpack(archive, tmp_path / "new")
        assert left(tmp_path) == [archive.name, "original"]


@pytest.mark.parametrize(
    "name", ["../escaped", "a/../../escaped", "/tmp/escaped", "C:/escaped", "..\\escaped"]
)
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        pack.writestr("first.txt", "harmless")
        pack.writestr(name, "harm")
    tarred(tmp_path / "a.tar", name)
    for archive in ("a.zip", "a.tar"):
        with pytest.raises(
            InctrlError, match=r"^\S* is refused: it would write .*escaped', outside its folder"
        ):
            unpack(tmp_path / archive, tmp_path / "new")
    assert left(tmp_path) == ["a.tar", "a.zip"]


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    tarred(tmp_path / "a.tar", "name")
    name = b"path=a\0b"
    record = b"%d %s\n" % (len(name) + 4, name)
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as pack:
        header = tarfile.TarInfo("header")
        header.type, header.size = tarfile.XHDTYPE, len(record)
        pack.addfile(header, io.BytesIO(record))
        pack.addfile(tarfile.TarInfo("name"))
    with pytest.raises(InctrlError, match="b.tar is refused: it would write 'a.x00b'"):
        unpack(tmp_path / "b.tar", tmp_path / "new")
    assert left(tmp_path) == ["a.tar", "b.tar"]


def test_a_name_in_no_encoding_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        pack.writestr("n\u00e4me.txt", "harmless")  # marked as UTF-8
    content = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace("\u00e4".encode(), b"\xff\xff"))
    with pytest.raises(InctrlError, match="a.zip is damaged or cut short"):
        unpack(tmp_path / "a.zip", tmp_path / "new")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path, kind):
    member = tarfile.TarInfo("header")
    member.type, member.size = kind, 3_000_000_000
    block = member.tobuf(tarfile.GNU_FORMAT)
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(block + bytes(1 << 20))
    with pytest.raises(InctrlError, match=r"^\S*a\.tar\.gz is refused: .* has 3,000,000,000 bytes"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "new")
    assert left(tmp_path) == ["a.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    tarred(tmp_path / "a.tar", "link", kind, "/etc/passwd")
    with pytest.raises(InctrlError, match="'link' is neither a file nor a folder"):
        unpack(tmp_path / "a.tar", tmp_path / "new")
    assert left(tmp_path) == ["a.tar"]


def test_links_in_zip_files_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        pack.writestr(link, "/etc/passwd")
    with pytest.raises(InctrlError, match="'link' is neither a file nor a folder"):
        unpack(tmp_path / "a.zip", tmp_path / "new")


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        pack.writestr("harmless.txt", "a")
        pack.writestr("zeros.bin", bytes(1_000_000))
    with pytest.raises(InctrlError, match="bomb.zip is refused: it unpacks to far more"):
        unpack(tmp_path / "bomb.zip", tmp_path / "new")
    monkeypatch.setattr(archives, "FREE_BYTES", 10_000_000)
    unpack(tmp_path / "bomb.zip", tmp_path / "fine")
    monkeypatch.setattr(archives, "MAX_FILES", 1)
    with pytest.raises(InctrlError, match="bomb.zip is refused"):
        unpack(tmp_path / "bomb.zip", tmp_path / "new")
    assert left(tmp_path) == ["bomb.zip", "fine"]


def test_a_zip_file_with_a_password_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        pack.writestr("secret.txt", "s")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InctrlError, match="a.zip cannot be unpacked here .*password.*: unpack it by hand"):
        unpack(tmp_path / "a.zip", tmp_path / "new")
