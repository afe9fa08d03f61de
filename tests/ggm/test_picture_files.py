"""Files of pictures as cameras, scanners and people leave them."""

import os
from pathlib import Path

import numpy
import pytest
import torch
from pictures import draw_pictures
from PIL import Image

from ggm.commands.cli import main
from ggm.data.images.files import FolderImages, fit, open_images, open_picture
from ggm.data.images.masks import pixels_to_draw, read_image
from ggm.data.images.tokenizers import GreyLevels
from ggm.training import vq

TURNED = 6  # EXIF: to be shown turned by 90 degrees clockwise


def parquet_of(path: Path, cells: list[bytes | None]) -> Path:
    import datasets

    rows = [None if cell is None else {"bytes": cell, "path": None} for cell in cells]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(path)
    return path


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_sixteen_bits_are_scaled_to_eight(source, tmp_path):
    wide = (
        numpy.array([[0, 257, 32639, 32768], [65535, 65278, 32639, 0]], dtype="uint16")
        .repeat(4, 0)
        .repeat(2, 1)
    )
    Image.fromarray(wide).save(tmp_path / "a.png")
    expected = torch.from_numpy((wide / 257).round().astype("uint8"))
    place = tmp_path
    if source == "parquet":
        place = parquet_of(tmp_path / "a.parquet", [(tmp_path / "a.png").read_bytes()])
    picture = open_images(str(place)).open(0)
    assert torch.equal(fit(picture, 8, "L")[..., 0], expected)
    assert torch.equal(fit(picture, 8, "RGB"), expected[..., None].expand(-1, -1, 3))
    assert set(expected.flatten().tolist()) == {0, 1, 127, 128, 254, 255}


def test_numbers_of_no_known_range_are_refused(tmp_path):
    for mode, values in (("F", "float32"), ("I", "int32")):
        path = tmp_path / f"{mode}.tiff"
        Image.fromarray(numpy.full((4, 4), 70000, values)).save(path)
        with pytest.raises(
            ValueError, match=rf"^{path}: got an image of mode '{mode}'; allowed: 8 or 16 bits"
        ):
            open_picture(path)


@pytest.mark.parametrize("turned_mask", [False, True])
def test_masks_are_laid_on_photographs_as_they_are_seen(turned_mask, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = TURNED
    stored = numpy.zeros((4, 8), "uint8")
    stored[:, :4] = 200  # bright on the left as stored: above, as it is seen
    photograph = tmp_path / "photograph.png"
    Image.fromarray(stored).save(photograph, exif=exif)
    seen = numpy.zeros((8, 4), "uint8")
    seen[:4] = 255  # the upper half, of the picture as it is seen
    mask = tmp_path / "mask.png"
    if turned_mask:
        Image.fromarray(numpy.ascontiguousarray(numpy.rot90(seen))).save(mask, exif=exif)
    else:
        Image.fromarray(seen).save(mask)
    tokenizer = GreyLevels(4, 4)
    pixels, white = (
        read_image(tokenizer, photograph)[0, ..., 0],
        pixels_to_draw(tokenizer, photograph, mask=mask),
    )
    assert torch.equal(white, pixels > 100) and white[:2].all() and not white[2:].any()


def test_a_mask_of_the_stored_size_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = TURNED
    Image.new("L", (8, 4)).save(tmp_path / "photograph.png", exif=exif)
    Image.new("L", (8, 4)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="mask: got 8 x 4 pixels; allowed: 4 x 8, as the image"):
        pixels_to_draw(GreyLevels(4, 4), tmp_path / "photograph.png", mask=tmp_path / "mask.png")


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    draw_pictures(tmp_path / "real", 4)
    draw_pictures(tmp_path / "elsewhere", 6)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    assert len(FolderImages(folder)) == 6
    (tmp_path / "real").rename(folder / "d")
    assert len(FolderImages(folder)) == 10
    # To itself, to its parent, and to a folder that is there anyway: nothing is read twice.
    (folder / "d" / "a" / "up").symlink_to(folder)
    (folder / "b").symlink_to(folder / "d")
    (folder / "self").symlink_to(".")
    images = FolderImages(folder)
    assert len(images) == 10 == len({path.resolve() for path in images._paths})
    assert images._paths == sorted(images._paths)
    assert {str(path.relative_to(folder))[0] for path in images._paths} == {"c", "d"}


def test_a_linked_folder_serves_as_the_folder(tmp_path):
    draw_pictures(tmp_path / "real", 4)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkdir(tmp_path / "real" / "folder.png")  # no picture
    assert len(FolderImages(tmp_path / "link")) == len(FolderImages(tmp_path / "real")) == 4


DAMAGED = {
    "null": (None, "got nothing in column 'image'; allowed: an image"),
    "cut short": (60, "not an image that can be read: "),
    "rubbish": (b"rubbish", "not an image that can be read: "),
}


@pytest.fixture
def one_is_damaged(request, tmp_path) -> Path:
    cut = DAMAGED[request.param][0]
    draw_pictures(tmp_path / "pictures", 4)
    cells: list = [path.read_bytes() for path in sorted((tmp_path / "pictures").rglob("*.*"))]
    cells.insert(3, cells[0][:cut] if isinstance(cut, int) else cut)
    return parquet_of(tmp_path / "a.parquet", cells)


@pytest.mark.parametrize(
    ("one_is_damaged", "name"), [(name, name) for name in DAMAGED], indirect=["one_is_damaged"]
)
@pytest.mark.parametrize("command", ["train-vq", "train"])
def test_a_damaged_picture_in_a_table_is_told_with_source_and_row(
    command, one_is_damaged, name, vq, tmp_path, capsys
):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"out: {tmp_path / 'run'}\n"
        f"data: {{kind: images, source: {one_is_damaged}, tokenizer: {vq}, size: 16, cache: {tmp_path / 'cache'}}}\n"
        "model: {chain: {length: 16}}\ntraining: {steps: 1}\n"
    )
    small = ["--size", "16", "--downsampling", "4", "--width", "8", "--batch", "2", "--steps", "1"]
    words = (
        [str(one_is_damaged), "--out", str(tmp_path / "vq"), *small]
        if command == "train-vq"
        else [str(config)]
    )
    assert main([command, *words, "--quiet"]) == 1
    error = capsys.readouterr().err
    told = f"ggm: error: {one_is_damaged}: row 3, counted from 0: {DAMAGED[name][1]}"
    assert error.startswith(told) and error.count("\n") == 1


def test_pictures_are_looked_at_before_training_starts(tmp_path, monkeypatch, capsys):
    folder = draw_pictures(tmp_path / "pictures", 4)
    bad = folder / "b" / "z.png"
    bad.write_bytes((folder / "b" / "1.png").read_bytes()[:60])
    monkeypatch.setattr(vq, "index_batches", lambda *_, **__: pytest.fail("training began"))
    words = ["--size", "16", "--downsampling", "4", "--width", "8", "--batch", "2", "--steps", "1"]
    assert main(["train-vq", str(folder), "--out", str(tmp_path / "vq"), *words, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"ggm: error: {bad}: not an image that can be read: ") and error.count("\n") == 1
    assert not (tmp_path / "vq").exists()
