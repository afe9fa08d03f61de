"""Images of a folder or of a data set, brought to one size."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch

from ggm.data.text import open_documents
from ggm.extras import require
from ggm.progress import progress_bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_CHECKED = 64


class Images(Protocol):
    """Pictures of any size by index."""

    def __len__(self) -> int: ...

    def open(self, index: int) -> Any:
        """Picture as a `PIL.Image.Image`."""
        ...

    def fingerprint(self) -> str:
        """Text that changes when the pictures do."""
        ...


class FolderImages:
    """All pictures in a folder and in the folders within it; links to folders are followed.

    A folder that several names lead to is read once.

    Parameters
    ----------
    folder : Path
        Where they are.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = pictures_in(folder)
        if not self._paths:
            raise FileNotFoundError(
                f"{folder}: no images; allowed: names that end in {', '.join(SUFFIXES)}, at any depth"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def open(self, index: int) -> Any:
        """Picture as a `PIL.Image.Image`."""
        return open_picture(self._paths[index])

    def fingerprint(self) -> str:
        """Names, sizes and times of change: contents would have to be read."""
        digest = hashlib.sha256()
        for path in self._paths:
            state = path.stat()
            line = f"{path.relative_to(self._folder)}\0{state.st_size}\0{state.st_mtime_ns}\n"
            digest.update(line.encode())
        return digest.hexdigest()


class DatasetImages:
    """A column of pictures of a data set that `datasets` reads."""

    def __init__(self, rows: Any, column: str, source: str) -> None:
        if column not in rows.column_names:
            raise ValueError(f"data.column: got {column!r}; allowed: {', '.join(rows.column_names)}")
        if not isinstance(rows.features[column], require("datasets", extra="train").Image):
            raise ValueError(f"data.column: got {column!r}; allowed: a column of images")
        self._rows, self._column, self._source = rows, column, source

    def __len__(self) -> int:
        return len(self._rows)

    def open(self, index: int) -> Any:
        """Picture as a `PIL.Image.Image`."""
        where = f"{self._source}: row {index}, counted from 0"
        try:
            picture = self._rows[index][self._column]
        except Exception as error:  # what `datasets` and Pillow raise
            raise ValueError(f"{where}: not an image that can be read: {error}") from error
        if picture is None:
            raise ValueError(f"{where}: got nothing in column {self._column!r}; allowed: an image")
        return _ready(picture, where)

    def fingerprint(self) -> str:
        """What `datasets` knows the rows by, and the column."""
        return f"{self._rows._fingerprint} {self._column}"


def open_images(
    source: str,
    *,
    subset: str | None = None,
    split: str = "train",
    column: str = "image",
    progress: bool = False,
) -> Images:
    """Pictures of a folder, of a .parquet file, or of a data set on the Hugging Face Hub.

    Parameters
    ----------
    source : str
        A folder, a file, or a name on the Hub.
    subset, split, column : str
        Of a data set: its configuration, split, and column of images.
    progress : bool
        Whether to show bars while a data set is read.

    Raises
    ------
    OSError, ValueError
        If there are none.
    """
    if Path(source).is_dir():
        return FolderImages(Path(source))
    rows = open_documents(source, subset=subset, split=split, progress=progress)
    return DatasetImages(rows, column, source)


def pictures_in(folder: Path) -> list[Path]:
    """All pictures in a folder and in the folders within it, as `FolderImages` reads them."""
    return sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES)


def _files(folder: Path) -> Iterator[Path]:
    """Files at any depth. Folders of the tree itself come before those that links lead to."""
    folders, links, seen = deque([folder]), deque[Path](), set()
    while folders or links:
        here = (folders or links).popleft()
        state = here.stat()
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for path in sorted(here.iterdir()):
            if not path.is_dir():
                yield path
            elif path.is_symlink():
                links.append(path)
            else:
                folders.append(path)


def open_picture(path: Path) -> Any:
    """Picture of a file, read as a whole, upright, with 8 bits per number.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, no picture, or of numbers that are not known to be brightness.
    """
    image = require("PIL.Image", extra="images")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with image.open(path) as picture:
            picture.load()
    except Exception as error:  # what Pillow raises for damaged files is of many kinds
        raise ValueError(f"{path}: not an image that can be read: {error}") from error
    return _ready(picture, str(path))


def _ready(picture: Any, where: str) -> Any:
    """A picture turned as cameras left it to the viewer to do, with 8 bits for each number.

    Pillow itself makes 255 of all that is above it.
    """
    image, operations = (require(f"PIL.{name}", extra="images") for name in ("Image", "ImageOps"))
    sixteen_bits = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
    upright = operations.exif_transpose(picture)
    if sixteen_bits:
        grey = (numpy.asarray(upright).astype("float64") / 257).round()
        return image.fromarray(grey.astype("uint8"))
    if picture.mode in ("I", "F"):
        raise ValueError(f"{where}: got an image of mode {picture.mode!r}; allowed: 8 or 16 bits per number")
    return upright


def fit(picture: Any, size: int, mode: str) -> torch.Tensor:
    """Bring a picture of `Images` to a square: its shorter side resized, then the middle taken.

    Parameters
    ----------
    picture : PIL.Image.Image
        Of any size.
    size : int
        Pixels of a side.
    mode : str
        "RGB", or "L" for grey.

    Returns
    -------
    torch.Tensor
        uint8 [size, size, 3 or 1].
    """
    image, operations = (require(f"PIL.{name}", extra="images") for name in ("Image", "ImageOps"))
    square = operations.fit(picture.convert(mode), (size, size), method=image.Resampling.LANCZOS)
    return torch.from_numpy(numpy.array(square)).view(size, size, -1)


def read_batches(
    images: Images, order: torch.Tensor, size: int, mode: str, batch: int
) -> Iterator[torch.Tensor]:
    """Pictures in some order, decoded by as many threads as there are cores.

    Parameters
    ----------
    images : Images
        Pictures.
    order : torch.Tensor
        Indices, int64 [N].
    size, mode
        As in `fit`.
    batch : int
        Pictures at a time; the last batch may be smaller.

    Yields
    ------
    torch.Tensor
        uint8 [batch, size, size, C].
    """

    def load(index: int) -> torch.Tensor:
        return fit(images.open(index), size, mode)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for indices in order.split(batch):
            yield torch.stack(list(pool.map(load, indices.tolist())))


def check_pictures(images: Images, size: int, mode: str, *, progress: bool = False) -> None:
    """Read all pictures once, as `read_batches` does: what is wrong with one of them is told before the work.

    Raises
    ------
    OSError, ValueError
        For the first one that cannot be read; it tells which.
    """
    with progress_bar(progress, len(images), "reading images", unit="image") as bar:
        for pixels in read_batches(images, torch.arange(len(images)), size, mode, _CHECKED):
            bar.update(len(pixels))
