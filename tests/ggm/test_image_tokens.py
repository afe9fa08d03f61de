"""Images as tokens: folder, tokenizer, cache."""

from contextlib import nullcontext

import numpy
import pytest
import torch
from pictures import COUNT, SIZE, draw_pictures, small_vq
from PIL import Image

from ggm.data.images.files import DatasetImages, FolderImages, fit, open_images, read_batches
from ggm.data.images.masks import frozen_tokens, pixels_to_draw, show_hole
from ggm.data.images.token_cache import cached_tokens
from ggm.data.images.tokenizers import GreyLevels, VQTokenizer, open_vq, to_floats, to_pixels
from ggm.data.sources import ImageData, load_data
from ggm.training.vq import VQConfig, train_vq


def pixels_of(images, size=SIZE, mode="RGB"):
    (pixels,) = read_batches(images, torch.arange(len(images)), size, mode, len(images))
    return pixels


def test_a_folder_is_read_at_any_depth_and_cut_to_squares(folder, tmp_path):
    images = FolderImages(folder)
    assert len(images) == COUNT
    pixels = pixels_of(images)
    assert pixels.shape == (COUNT, SIZE, SIZE, 3) and pixels.dtype == torch.uint8
    assert pixels_of(images, 8, "L").shape == (COUNT, 8, 8, 1)
    # Wide pictures lose their sides, high ones top and bottom; what is left is not distorted.
    wide = numpy.zeros((10, 30, 3), "uint8")
    wide[:, 10:20] = 200
    for values in (wide, wide.transpose(1, 0, 2)):
        assert (fit(Image.fromarray(values), 5, "RGB") > 180).all()
    # Cameras may leave the turning to the viewer.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(numpy.tile(numpy.arange(8, dtype="uint8") * 30, (8, 1))).save(
        tmp_path / "turned.png", exif=exif
    )
    turned = fit(FolderImages(tmp_path).open(0), 8, "L")[..., 0]
    assert (turned[:, 0] == turned[:, 7]).all() and turned[0, 0] < turned[7, 0]


def test_parquet_files_and_the_hub_take_the_same_way(folder, vq, tmp_path):
    import datasets

    names = [str(path) for path in FolderImages(folder)._paths]
    rows = datasets.Dataset.from_dict({"image": names, "name": names})
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "a.parquet")
    images = open_images(str(tmp_path / "a.parquet"))
    assert isinstance(images, DatasetImages)
    assert torch.equal(pixels_of(images), pixels_of(FolderImages(folder)))
    assert images.fingerprint() == open_images(str(tmp_path / "a.parquet")).fingerprint()
    for column, words in [("picture", "allowed: image, name"), ("name", "a column of images")]:
        with pytest.raises(ValueError, match=rf"data\.column: got '{column}'; .*{words}"):
            open_images(str(tmp_path / "a.parquet"), column=column)
    common = {"tokenizer": str(vq), "size": SIZE, "held_out": 4, "cache": str(tmp_path)}
    one, two = (load_data(ImageData(str(s), **common), 16) for s in (folder, tmp_path / "a.parquet"))
    assert torch.equal(one.held_out, two.held_out)


@pytest.mark.parametrize(
    ("options", "normalize"),
    [
        ({}, True),
        ({}, False),
        ({"lookup_from_codebook": True}, True),
        ({"norm_type": "spatial", "width": 32}, True),
    ],
)
def test_decoding_tokens_gives_what_the_network_itself_gives(options, normalize, folder, tmp_path):
    tokenizer = open_vq(str(small_vq(tmp_path, **options)), SIZE, normalize=normalize)
    pixels = pixels_of(FolderImages(folder))
    tokens = tokenizer.encode(pixels)
    assert tokens.shape == (COUNT, 16) and tokens.dtype == torch.int64
    assert 5 < tokens.unique().numel() <= tokenizer.vocab_size == 16
    with torch.no_grad():
        expected = to_pixels(tokenizer.model(to_floats(pixels, normalize)).sample, normalize)
    decoded = tokenizer.decode(tokens)
    # The network adds and subtracts what it quantises: a pixel may round otherwise.
    assert (decoded.int() - expected.int()).abs().max() <= 1
    assert (decoded.int() - tokenizer.decode(tokens.flip(1)).int()).abs().max() > 1


def test_tokens_stand_row_by_row():
    tokenizer = GreyLevels(4, 16)
    tokens = torch.arange(16)[None]
    pixels = tokenizer.decode(tokens)
    assert pixels[0, 1, 2, 0] == 6 * 17
    assert torch.equal(tokenizer.encode(pixels), tokens)


def test_rows_of_a_network_are_rows_of_the_picture(vq):
    tokenizer = open_vq(str(vq), SIZE)
    one = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
    other = one.clone()
    other[:, :4] = 255  # the first row of tokens, and by the border of filters the second
    changed = (tokenizer.encode(one) != tokenizer.encode(other)).view(4, 4)
    decoded = (
        tokenizer.decode(torch.zeros(1, 16).long()),
        tokenizer.decode((torch.arange(16) < 4).long()[None]),
    )
    difference = (decoded[0].int() - decoded[1].int()).abs().sum(dim=(0, 2, 3))
    assert changed[0].any()
    assert difference[:4].sum() > difference[12:].sum()


def test_tokens_are_made_once_and_anew_if_anything_changed(folder, vq, tmp_path, monkeypatch):
    import shutil

    pictures = shutil.copytree(folder, tmp_path / "pictures")
    cache = tmp_path / "cache"

    def tokens(source=pictures, model=vq, size=SIZE, **options):
        return cached_tokens(FolderImages(source), open_vq(str(model), size, **options), cache)

    first = tokens()
    values = numpy.load(first)
    assert values.shape == (COUNT, 16) and values.dtype == numpy.uint16
    written_at = first.stat().st_mtime_ns
    assert tokens() == first and first.stat().st_mtime_ns == written_at
    # The same network in another place is the same network.
    assert tokens(model=shutil.copytree(vq, tmp_path / "elsewhere")) == first
    assert tokens(source=shutil.copytree(pictures, tmp_path / "copy")) == first
    others = [
        tokens(size=SIZE // 2),
        tokens(normalize=False),
        tokens(model=small_vq(tmp_path / "other", vocab_size=17)),
    ]
    retrained = shutil.copytree(vq, tmp_path / "retrained")
    model = open_vq(str(retrained), SIZE).model
    model.quantize.embedding.weight.data[3] += 1
    model.save_pretrained(retrained)
    others.append(tokens(model=retrained))
    name = next((pictures / "a").iterdir())
    name.write_bytes((pictures / "b" / "1.png").read_bytes())
    others.append(tokens())
    name.unlink()
    others.append(tokens())
    assert len({first, *others}) == 7
    assert numpy.load(others[-1]).shape == (COUNT - 1, 16)
    assert sorted(path.suffix for path in cache.iterdir()) == [".npy"] * 7


def test_a_picture_that_cannot_be_read_leaves_no_tokens(vq, tmp_path):
    pictures = draw_pictures(tmp_path / "pictures", 4)
    bad = pictures / "a" / "bad.png"
    bad.write_bytes((pictures / "b" / "1.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"bad\.png: not an image that can be read"):
        cached_tokens(FolderImages(pictures), open_vq(str(vq), SIZE), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("damaged", [False, True])
def test_the_network_ends_on_the_device_where_it_was(damaged, vq, tmp_path, monkeypatch):
    pictures = draw_pictures(tmp_path / "pictures", 2)
    if damaged:
        (pictures / "a" / "bad.png").touch()
    tokenizer = open_vq(str(vq), SIZE)
    # There is one device here: what is asked of the network is noted in place of a move.
    places = [torch.device("cuda:1")]
    monkeypatch.setattr(type(tokenizer.model), "device", property(lambda model: places[-1]))
    monkeypatch.setattr(tokenizer.model, "to", lambda device: places.append(torch.device(device)))
    expected = pytest.raises(ValueError, match="not an image") if damaged else nullcontext()
    with expected:
        cached_tokens(FolderImages(pictures), tokenizer, tmp_path / "cache", device="cpu")
    assert places == [torch.device(place) for place in ("cuda:1", "cpu", "cuda:1")]


def test_held_out_images_are_chosen_at_random_and_always_the_same(folder, vq, tmp_path):
    config = ImageData(str(folder), str(vq), SIZE, cache=str(tmp_path), held_out=8)
    data = load_data(config, 16)
    tokens = open_vq(str(vq), SIZE).encode(pixels_of(FolderImages(folder)))
    rows = torch.cat([data.held_out, data.train[torch.arange(COUNT - 8)]])
    assert sorted(rows.tolist()) == sorted(tokens.tolist())
    assert not torch.equal(rows, tokens)
    other = load_data(ImageData(str(folder), str(vq), SIZE, cache=str(tmp_path / "b"), held_out=8), 16)
    assert torch.equal(other.held_out, data.held_out)
    held_out = {tuple(row) for row in data.held_out.tolist()}
    assert any(tuple(row) in held_out for row in tokens[: COUNT // 2].tolist())
    assert any(tuple(row) in held_out for row in tokens[COUNT // 2 :].tolist())


def test_training_a_tokenizer_lowers_its_error_and_uses_its_codebook(folder):
    config = VQConfig(size=SIZE, downsampling=4, vocab_size=32, width=8, steps=60)
    result = train_vq(FolderImages(folder), config)
    assert len(result.losses) == 60
    assert sum(result.losses[-5:]) < 0.7 * sum(result.losses[:5])
    assert result.used > 16
    pixels = pixels_of(FolderImages(folder))
    again = result.tokenizer.decode(result.tokenizer.encode(pixels)).float()
    # Better than the best single colour for all pictures.
    assert ((again - pixels) ** 2).mean() < pixels.float().flatten(0, 2).var(dim=0).mean()
    assert train_vq(FolderImages(folder), VQConfig(size=SIZE, width=8, steps=2)).losses == (
        train_vq(FolderImages(folder), VQConfig(size=SIZE, width=8, steps=2)).losses
    )


def test_the_hole_that_is_shown_is_the_one_that_is_drawn(folder, vq):
    tokenizer = open_vq(str(vq), SIZE)
    mask = pixels_to_draw(tokenizer, folder / "b" / "1.png", box="7,4,8,16")
    frozen = frozen_tokens(tokenizer, mask)
    assert (~frozen).nonzero()[:, 0].tolist() == [5, 9, 13]
    shown = show_hole(tokenizer, torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8), frozen)
    painted = shown[0].sum(dim=-1) > 0
    assert painted[4:, 4:8].all() and painted.sum() == 12 * 4


def test_networks_of_other_channels_are_refused(tmp_path):
    grey = open_vq(str(small_vq(tmp_path / "grey", in_channels=1, out_channels=1)), SIZE)
    assert grey.mode == "L" and grey.decode(torch.zeros(2, 16).long()).shape == (2, SIZE, SIZE, 1)
    with pytest.raises(ValueError, match="got 4 channels; allowed: 1 or 3"):
        open_vq(str(small_vq(tmp_path / "four", in_channels=4, out_channels=4)), SIZE)
    assert isinstance(grey, VQTokenizer)
