"""Sources out of PyPI and Debian packages, without a network: archives made here, a local server, stand-ins."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from relent.data import fetch as module
from relent.data.fetch import MIRRORS, extract, extract_members, fetch, read_members, write_members
from relent.data.receipt import check_receipt, refresh_receipt
from relent.errors import DataError
from relent.manifest.models import Source

POOL = "pool/main/w/winds/libwinds-data_1.0-1_all.deb"
CONTENT = {"usr/share/winds/u.cdf": b"wind " * 5000, "usr/share/winds/v.cdf": os.urandom(3001)}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(files: dict[str, bytes], compression: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def debian(files: dict[str, bytes] = CONTENT, compression: str = "xz") -> bytes:
    """A Debian package as deb(5) describes it."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar({"./control": b"odd"}, "gz"),
        f"data.tar{'.' if compression else ''}{compression}": tar({f"./{k}": v for k, v in files.items()}, compression),
    }
    package = b"!<arch>\n"
    for name, content in members.items():
        package += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        package += b"\n" * (len(content) % 2)
    return package


def source(content: bytes, **changes: object) -> Source:
    values: dict[str, object] = {
        "name": "winds",
        "title": "Winds",
        "registry": "debian",
        "package": "libwinds-data",
        "version": "1.0-1",
        "archive": {"path": POOL, "sha256": digest(content), "snapshot": "20250520T000000Z"},
        "files": {name: digest(content) for name, content in CONTENT.items()},
        "licence": "none",
    }
    return Source.model_validate(values | changes)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Folders that stand for the two mirrors, served on this machine; there is no apt."""
    roots = [tmp_path / "first", tmp_path / "second" / "20250520T000000Z"]
    for root in roots:
        root.mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(module, "MIRRORS", (f"{address}/first", f"{address}/second/{{snapshot}}"))
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    yield roots
    server.shutdown()
    server.server_close()


def serve(root: Path, package: bytes) -> None:
    (root / POOL).parent.mkdir(parents=True, exist_ok=True)
    (root / POOL).write_bytes(package)


# ---------------------------------------------------------------------------------------------- Debian


@pytest.mark.parametrize("compression", ["xz", "gz", "bz2", ""])
def test_files_of_a_debian_package(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "winds.deb"
    path.write_bytes(debian(compression=compression))
    assert extract(path, CONTENT) == CONTENT


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
@pytest.mark.parametrize("compression", ["xz", "gzip"])
def test_packages_of_debians_own_tool_are_read_alike(tmp_path: Path, compression: str) -> None:
    for name, content in CONTENT.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(content)
    (tmp_path / "tree" / "DEBIAN").mkdir()
    control = "Package: winds\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: winds\n"
    (tmp_path / "tree" / "DEBIAN" / "control").write_text(control)
    path = tmp_path / "winds.deb"
    subprocess.run(
        ["dpkg-deb", f"-Z{compression}", "--build", tmp_path / "tree", path], check=True, capture_output=True
    )
    assert extract(path, CONTENT) == CONTENT


def test_without_apt_the_mirror_is_asked(tmp_path: Path, mirrors: list[Path]) -> None:
    package = debian()
    serve(mirrors[0], package)
    fetch(source(package), tmp_path / "out")
    receipt = check_receipt(tmp_path / "out", contents=True)
    assert receipt["package"] == "libwinds-data=1.0-1"
    assert set(receipt["files"]) == {"u.cdf", "v.cdf"}
    assert (tmp_path / "out" / "v.cdf").read_bytes() == CONTENT["usr/share/winds/v.cdf"]


@pytest.mark.parametrize("first", ["gone", "other bytes", "cut off"])
def test_the_snapshot_is_asked_where_the_mirror_fails(tmp_path: Path, mirrors: list[Path], first: str) -> None:
    package = debian()
    if first != "gone":
        serve(mirrors[0], package[:-700] if first == "cut off" else debian({"usr/share/winds/u.cdf": b"other"}))
    serve(mirrors[1], package)
    fetch(source(package), tmp_path / "out")
    assert (tmp_path / "out" / "u.cdf").read_bytes() == CONTENT["usr/share/winds/u.cdf"]


def test_where_no_place_has_it_each_is_named_with_its_reason(tmp_path: Path, mirrors: list[Path]) -> None:
    serve(mirrors[1], debian({"usr/share/winds/u.cdf": b"other"}))
    with pytest.raises(DataError) as caught:
        fetch(source(debian()), tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(
        "source 'winds': libwinds-data=1.0-1 could not be downloaded (apt-get: is not installed; "
    )
    assert f"/first/{POOL}: HTTP Error 404" in message or f"/first/{POOL}: File not found" in message
    assert f"/second/20250520T000000Z/{POOL}: the package has SHA-256 " in message
    assert "lay the files of config/sources/winds.yaml into its folder" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_a_mirror_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9/nobody",))
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/nobody/pool/\S+ .*Connection refused"):
        fetch(source(debian()), tmp_path / "out")


def stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `apt-get` that runs a shell script, first on the path."""
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_apt_comes_first_and_is_told_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = debian()
    (tmp_path / "package.deb").write_bytes(package)
    script = f'echo "$@" > {tmp_path}/said; cp {tmp_path}/package.deb libwinds-data_1.0-1_all.deb'
    stand_in(tmp_path / "bin", script, monkeypatch)
    monkeypatch.setattr(module, "MIRRORS", ())
    fetch(source(package), tmp_path / "out")
    assert (tmp_path / "said").read_text().split() == ["download", "--quiet=2", "libwinds-data=1.0-1"]
    assert (tmp_path / "out" / "u.cdf").read_bytes() == CONTENT["usr/share/winds/u.cdf"]


def test_another_release_has_no_such_version_and_the_mirror_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirrors: list[Path]
) -> None:
    monkeypatch.undo()
    stand_in(tmp_path / "bin", 'echo "E: Version 1.0-1 for libwinds-data was not found" >&2; exit 100', monkeypatch)
    monkeypatch.setattr(module, "MIRRORS", ("http://127.0.0.1:9",))
    with pytest.raises(DataError, match=r"apt-get: E: Version 1.0-1 for libwinds-data was not found; http://127"):
        fetch(source(debian()), tmp_path / "out")


def test_a_file_with_other_bytes_is_refused(tmp_path: Path, mirrors: list[Path]) -> None:
    package = debian(CONTENT | {"usr/share/winds/v.cdf": b"changed"})
    serve(mirrors[0], package)
    with pytest.raises(DataError, match=r"usr/share/winds/v.cdf has SHA-256 .* config/sources/winds.yaml pins"):
        fetch(source(package), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (b"PK not a package", "is no ar archive"),
        (debian()[:100], "holds no file|ends early|header|has no data.tar"),
        (debian()[:-2000], "data.tar.xz ends early"),
        (b"!<arch>\n" + b"x" * 60, "header of the ar archive is wrong"),
        (debian().replace(b"data.tar.xz", b"rest.tar.xz"), "has no data.tar"),
        (debian({"usr/share/winds/u.cdf": b"u"}), "holds no file 'usr/share/winds/v.cdf'"),
    ],
    ids=["no archive", "head alone", "cut off", "garbage", "no data", "file absent"],
)
def test_broken_debian_packages_are_one_line(tmp_path: Path, package: bytes, message: str) -> None:
    path = tmp_path / "winds.deb"
    path.write_bytes(package)
    with pytest.raises(DataError, match=message) as caught:
        extract(path, CONTENT)
    assert str(caught.value).startswith("winds.deb: ")
    assert "\n" not in str(caught.value)


def test_flipped_bytes_inside_the_compressed_part(tmp_path: Path) -> None:
    package = bytearray(debian())
    package[-1500:-1400] = bytes(100)
    path = tmp_path / "winds.deb"
    path.write_bytes(package)
    with pytest.raises(DataError, match=r"winds.deb: is truncated or broken"):
        extract(path, CONTENT)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("winds-1/secret")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(entry)
    path = tmp_path / "winds-1.tar.gz"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="holds no file 'secret'"):
        extract(path, ["secret"])


# ---------------------------------------------------------------------------------------------- PyPI


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("registry", ["pypi-wheel", "pypi-sdist"])
def test_pip_downloads_the_pinned_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
    calls = []

    def pip(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if registry == "pypi-wheel":
            (cwd / "winds-1.0-py3-none-any.whl").write_bytes(wheel())
        else:
            sdist = tar({f"winds-1.0/{name}": content for name, content in CONTENT.items()}, "gz")
            (cwd / "winds-1.0.tar.gz").write_bytes(sdist)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", pip)
    fetch(source(b"", registry=registry, package="winds", version="1.0", archive=None), tmp_path / "out")
    assert calls[0][-1] == "winds==1.0"
    assert ("--only-binary=:all:" in calls[0]) == (registry == "pypi-wheel")
    assert check_receipt(tmp_path / "out", contents=True)["package"] == "winds==1.0"


def test_pips_own_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: odd\nERROR: No matching distribution found\n")

    monkeypatch.setattr(module.subprocess, "run", pip)
    with pytest.raises(DataError, match=r"winds==1.0 could not be downloaded \(pip: ERROR: No matching distribution"):
        fetch(source(b"", registry="pypi-wheel", package="winds", version="1.0", archive=None), tmp_path / "out")


def test_a_broken_wheel_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "winds.whl"
    path.write_bytes(wheel()[:-30])
    with pytest.raises(DataError, match=r"winds.whl: is truncated or broken"):
        extract(path, CONTENT)


# ---------------------------------------------------------------------------------------------- manifests


def test_an_archive_belongs_to_debian_alone() -> None:
    with pytest.raises(ValidationError, match="registry 'debian' needs `archive`"):
        source(b"", archive=None)
    with pytest.raises(ValidationError, match="others none"):
        source(b"", registry="pypi-wheel")


@pytest.mark.parametrize("path", ["/pool/main/w/winds/x.deb", "pool/main/w/../x.deb", "pool/main/w/winds/x.tar.gz"])
def test_the_archives_path_is_a_place_in_the_pool(path: str) -> None:
    with pytest.raises(ValidationError, match=r"archive.path"):
        source(b"", archive={"path": path, "sha256": "0" * 64, "snapshot": "20250520T000000Z"})


def test_the_mirrors_are_asked_over_https() -> None:
    assert all(mirror.startswith("https://") for mirror in MIRRORS)


# ---------------------------------------------------------------------------------------------- many files at once


BELOW = "usr/share/winds/units"
UNITS = {f"orcs/grunt-{n}.png": bytes([n]) * 50 for n in range(30)} | {"elves/bow/ä.png": b"elf", "elves/a+b.png": b""}
TREE = {f"{BELOW}/{name}": content for name, content in UNITS.items()} | {
    f"{BELOW}/readme.txt": b"no",
    "usr/share/winds/units-old/orcs/grunt.png": b"no",
    "usr/share/winds/u.cdf": b"u",
}


def pinned_members(**changes: object) -> dict[str, object]:
    # What `sha256sum $(find . -name '*.png' | sort)` prints, in the order of the bytes.
    lines = "".join(f"{digest(UNITS[name])}  {name}\n" for name in sorted(UNITS, key=str.encode))
    values: dict[str, object] = {
        "below": BELOW,
        "pattern": ".+/.+[.]png",
        "count": 32,
        "sha256": digest(lines.encode()),
    }
    return values | changes


def many(package: bytes, **changes: object) -> Source:
    return source(package, files={}, members=pinned_members(**changes))


def test_many_files_are_stored_as_one_archive_of_pinned_bytes(tmp_path: Path, mirrors: list[Path]) -> None:
    package = debian(TREE)
    serve(mirrors[0], package)
    fetch(many(package), tmp_path / "out")
    assert read_members(tmp_path / "out") == UNITS
    receipt = check_receipt(tmp_path / "out", contents=True)
    assert set(receipt["files"]) == {"members.zip"}
    fetch(many(package), tmp_path / "again")
    assert (tmp_path / "again" / "members.zip").read_bytes() == (tmp_path / "out" / "members.zip").read_bytes()


def test_single_files_can_come_along(tmp_path: Path, mirrors: list[Path]) -> None:
    package = debian(TREE)
    serve(mirrors[0], package)
    both = source(package, files={"usr/share/winds/u.cdf": digest(b"u")}, members=pinned_members())
    fetch(both, tmp_path / "out")
    assert (tmp_path / "out" / "u.cdf").read_bytes() == b"u"
    assert len(read_members(tmp_path / "out")) == 32
    assert both.pinned().keys() == {"u.cdf", "members.zip"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (TREE | {f"{BELOW}/orcs/more.png": b"x"}, r"33 files below usr/share/winds/units match .* not the 32"),
        ({k: v for k, v in TREE.items() if "ä" not in k}, "31 files below"),
        (TREE | {f"{BELOW}/orcs/grunt-3.png": b"other"}, r"the list of the 32 files .* has SHA-256 .* manifest pins"),
    ],
    ids=["too many", "too few", "other bytes"],
)
def test_other_files_than_the_pinned_ones_are_refused(
    tmp_path: Path, mirrors: list[Path], tree: dict[str, bytes], message: str
) -> None:
    package = debian(tree)
    serve(mirrors[0], package)
    with pytest.raises(DataError, match=message):
        fetch(many(package), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_many_files_of_a_wheel_and_a_source_distribution(tmp_path: Path) -> None:
    members = many(b"").members
    assert members is not None
    with zipfile.ZipFile(tmp_path / "winds.whl", "w") as archive:
        for name, content in TREE.items():
            archive.writestr(name, content)
    (tmp_path / "winds-1.tar.gz").write_bytes(tar({f"winds-1/{k}": v for k, v in TREE.items()}, "gz"))
    for name in ("winds.whl", "winds-1.tar.gz"):
        assert extract_members(tmp_path / name, members) == UNITS


def test_changed_members_are_refused_before_a_job_starts(tmp_path: Path, mirrors: list[Path]) -> None:
    package = debian(TREE)
    serve(mirrors[0], package)
    fetch(many(package), tmp_path / "out")
    write_members({"orcs/grunt.png": b"swapped"}, tmp_path / "out" / "members.zip")
    with pytest.raises(DataError, match=r"members.zip: its bytes are not the pinned ones"):
        refresh_receipt(tmp_path / "out", many(package).pinned())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, "takes `files`, `members` or both"),
        ({"files": {}, "members": pinned_members(pattern="(")}, "is no regular expression"),
        ({"files": {}, "members": pinned_members(below="../etc")}, "members.below"),
        ({"files": {}, "members": pinned_members(count=0)}, "members.count"),
        ({"files": {"a/members.zip": "0" * 64}}, "base names, which must differ"),
    ],
)
def test_manifests_of_many_files(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(b"", **changes)
