"""Pictures in and out: reading whatever people bring, captions beside them, grids, thumbnails."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps

from sdatoms.errors import AtomError
from sdatoms.storage import decode_text, write_whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CAPTION_LIMIT",
    "PICTURE_SUFFIXES",
    "SIDECARS",
    "cut_square",
    "draw_grid",
    "find_pictures",
    "find_sidecars",
    "join_squares",
    "list_pictures",
    "make_thumbnail",
    "read_alpha",
    "read_mask",
    "read_picture",
    "read_sidecar",
    "save_image",
    "to_tensor",
]

CAPTION_LIMIT = 2000
MAX_PIXELS = 100_000_000


def find_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of `folder` that open as pictures, and those that do not, both in name order.

    Raises:
        AtomError: there is no such folder, or no picture in it.
    """
    pictures, others = list_pictures(folder)
    if not pictures:
        raise AtomError(
            f"the folder {str(folder)!r} holds no picture; it takes files such as PNG, JPEG or WebP"
        )
    return pictures, others


def list_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """As `find_pictures`, of a folder that may hold no picture.

    Raises:
        AtomError: there is no such folder.
    """
    if not folder.is_dir():
        raise AtomError(f"there is no folder {str(folder)!r} to read pictures from")
    pictures, others = [], []
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        try:
            with Image.open(path) as picture:
                picture.verify()
            pictures.append(path)
        except Exception:  # Pillow raises many kinds for what is no picture
            others.append(path)
    return pictures, others


def read_picture(path: Path | IO[bytes], background: str = "white") -> Image.Image:
    """The first frame as sRGB, upright by its EXIF tag, transparency over the background.

    A colour profile that the file carries is followed; 16 bits a channel become 8.

    Args:
        path: a file, or an open one with a name.

    Raises:
        AtomError: the file is corrupt or larger than 100 megapixels.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise AtomError(
                    f"the picture {path.name!r} has {opened.width}×{opened.height} pixels; at most "
                    "100 million are read"
                )
            picture = reduce_depth(ImageOps.exif_transpose(opened))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
            picture = use_profile(picture)
            if picture.mode == "RGBA":
                canvas = Image.new("RGBA", picture.size, background)
                canvas.alpha_composite(picture)
                picture = canvas
            return picture.convert("RGB")
    except AtomError:
        raise
    except Exception as error:
        raise AtomError(f"the picture {path.name!r} cannot be read: {error}") from None


def read_mask(path: Path | IO[bytes]) -> Image.Image:
    """A mask as grey, read as `read_picture` reads: white counts, black and transparent do not.

    Raises:
        AtomError: as `read_picture`.
    """
    return read_picture(path, background="black").convert("L")


def read_alpha(path: Path) -> Image.Image | None:
    """How opaque a picture is, upright, white where it is opaque; None where it is so all over.

    Raises:
        AtomError: the file is corrupt.
    """
    try:
        with Image.open(path) as opened:
            if not opened.has_transparency_data:
                return None
            alpha = ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")
    except Exception as error:
        raise AtomError(f"the picture {path.name!r} cannot be read: {error}") from None
    return alpha if alpha.getextrema() != (255, 255) else None


def reduce_depth(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8; Pillow by itself would make white of all above 255."""
    if picture.mode[0] not in "IF":
        return picture
    grey = np.nan_to_num(np.asarray(picture, dtype=np.float32)).clip(min=0)
    most = float(grey.max(initial=0.0))
    tops = {"I": (255, 65535), "F": (1, 255, 65535)}.get(picture.mode, (65535,))
    full = next((top for top in tops if most <= top), most)
    return Image.fromarray((grey * (255 / full)).round().astype(np.uint8))


def use_profile(picture: Image.Image) -> Image.Image:
    """Colours as sRGB where the file says by a profile what its own mean, as phones and presses do;
    a profile that cannot be read is overlooked."""
    profile = picture.info.get("icc_profile")
    if not profile or picture.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return picture
    mode = "RGBA" if picture.mode == "RGBA" else "RGB"
    # ImportError: some builds of Pillow are without littleCMS.
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, ImportError):
        own, plain = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, own, plain, outputMode=mode) or picture
    return picture


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB picture → float32 `(3, h, w)` in [-1, 1]."""
    import torch  # here: commands that only look at names and settings do without

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def cut_square(picture: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    """The middle square of a picture, scaled to `size` px."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.resize((size, size), filter, box=(left, top, left + side, top + side))


def join_squares(pictures: Sequence[Image.Image]) -> Image.Image:
    """Square pictures side by side, all of the first one's height."""
    side = pictures[0].height
    strip = Image.new("RGB", (side * len(pictures), side))
    for place, picture in enumerate(pictures):
        strip.paste(picture.resize((side, side)), (side * place, 0))
    return strip


def draw_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str] = (),
    cell: int = 128,
) -> Image.Image:
    """A labelled grid on white; pictures are scaled to `cell` px, small ones without smoothing
    their pixels away."""
    font = ImageFont.load_default(size=max(11, cell // 9))
    lines = [line for label in row_labels for line in label.split("\n")]
    margin = max([int(font.getlength(line)) for line in lines], default=0) + 16
    head = max([label.count("\n") + 1 for label in column_labels], default=0) * (cell // 5 + 4)
    columns = max(len(row) for row in rows)
    grid = Image.new("RGB", (margin + columns * (cell + 4), head + len(rows) * (cell + 4)), "white")
    draw = ImageDraw.Draw(grid)
    for c, label in enumerate(column_labels):
        draw.text(
            (margin + c * (cell + 4) + cell / 2, head / 2),
            label,
            fill="black",
            font=font,
            anchor="mm",
            align="center",
        )
    for r, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        top = head + r * (cell + 4)
        draw.text((8, top + cell / 2), label, fill="black", font=font, anchor="lm")
        for c, picture in enumerate(row):
            shown = picture.resize((cell, cell), Image.Resampling.LANCZOS)
            grid.paste(shown, (margin + c * (cell + 4), top))
    return grid


def save_image(picture: Image.Image, path: Path, format: str | None = None, **options: Any) -> Path:
    """Write a picture whole or not at all: who reads `path` while it is written again finds the
    old picture or the new one.

    Args:
        format: as Pillow names it; that of the suffix when not given.
        options: as `Image.save` takes them for that format.

    Raises:
        AtomError: the suffix is no picture's.
    """
    known = Image.registered_extensions()
    if format is None and path.suffix.lower() not in known:
        raise AtomError(f"{path.name!r} has no suffix of a picture; name it .png, .jpg or .webp")
    buffer = io.BytesIO()
    picture.save(buffer, format or known[path.suffix.lower()], **options)
    return write_whole(path, buffer.getvalue())


def make_thumbnail(picture: Image.Image, size: int = 128) -> str:
    """A data URI of a JPEG no larger than `size` px, the form `modelspec.thumbnail` takes."""
    small = picture.convert("RGB")
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


PICTURE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif"),
)
"""What must open as a picture; phones' HEIC does only where a plugin of Pillow reads it."""


SIDECARS = (".txt", ".caption")
"""What captions beside pictures end in, in any case."""


def read_sidecar(picture: Path) -> str:
    """The caption beside a picture; an empty text where there is none."""
    for path in find_sidecars(picture, picture.parent.iterdir()):
        text = decode_text(path.read_bytes())[0].strip()[:CAPTION_LIMIT]
        if text:
            return text
    return ""


def find_sidecars(picture: Path, files: Iterable[Path]) -> list[Path]:
    """Caption files of a picture among `files`, first the one that counts: `dog.txt`,
    `dog.caption`, `dog.png.txt`, `dog.png.caption`, in any case."""
    names = [f"{stem}{end}" for stem in (picture.stem, picture.name) for end in SIDECARS]
    found = {}
    for path in sorted(files):
        if path.suffix.lower() in SIDECARS and path.is_file():
            found.setdefault(path.name.lower(), path)
    return [found[name.lower()] for name in names if name.lower() in found]
