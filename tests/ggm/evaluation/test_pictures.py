"""Pictures at the command line: folders of any system, and checkpoints whose tokens a network decodes."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from pictures import COUNT, SIZE, small_vq
from PIL import Image

from ggm.commands.cli import main
from ggm.data.images.files import FolderImages, fit
from ggm.data.images.tokenizers import read_tokenizer
from ggm.evaluation import image_distances
from ggm.evaluation.distances import frechet_distance
from ggm.training.checkpoints import find

pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]
HELD_OUT = 6


class Features(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images.float() / 255).relu().mean((2, 3))


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    """One network as both kinds of file; the exported one takes images of SIZE only."""
    folder = tmp_path_factory.mktemp("networks")
    torch.jit.script(Features()).save(folder / "net.pt")
    example = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    rows = torch.export.Dim("rows", min=1)
    torch.export.save(
        torch.export.export(Features(), (example,), dynamic_shapes=({0: rows},)), folder / "net.pt2"
    )
    return {"pt": folder / "net.pt", "pt2": folder / "net.pt2"}


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    """Folder of a run of two steps on tokens of these pictures."""
    home = tmp_path_factory.mktemp("run")
    vq = small_vq(home / "vq")
    (home / "run.yaml").write_text(
        f"out: {home / 'run'}\n"
        f"data: {{kind: images, source: {folder}, tokenizer: {vq}, size: {SIZE}, held_out: {HELD_OUT}, "
        f"cache: {home / 'cache'}}}\n"
        "model: {chain: {length: 16, sweeps: 2}, backbone: {width: 16, depth: 1, heads: 2, "
        "positions: rotary, grid: [4, 4]}, masked_counts: [4]}\n"
        "training: {steps: 2, batch_size: 8}\ntracker: none\n"
    )
    assert main(["train", str(home / "run.yaml"), "--quiet"]) == 0
    return home / "run"


def told(capsys, *words) -> dict:
    assert main([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)


def pixels_of(folder: Path, size: int = SIZE) -> torch.Tensor:
    """uint8 [N, size, size, 3], read without the code under test."""
    images = FolderImages(folder)
    return torch.stack([fit(images.open(i), size, "RGB") for i in range(len(images))])


def features_of(pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return Features()(pixels.movedim(-1, 1))


def write_noise(folder: Path, count: int, seed: int = 1) -> Path:
    folder.mkdir()
    rng = numpy.random.default_rng(seed)
    for i in range(count):
        values = rng.integers(0, 200, (22, 18, 3), "uint8")
        Image.fromarray(values).save(folder / f"{i}.jpg")
    return folder


@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_a_folder_against_a_folder(kind, networks, folder, tmp_path, capsys):
    samples = write_noise(tmp_path / "samples", 17)
    for name in ("a/2.png", "b/1.png"):
        shutil.copy(folder / name, samples)
    found = told(capsys, "score", samples, "--reference", folder, "--size", SIZE,
                 "--fid-network", networks[kind], "--score-batch", 5)  # fmt: skip
    ours, real = pixels_of(samples), pixels_of(folder)
    images = found["images"]
    assert (images["samples"], images["reference_images"]) == (19, COUNT)
    assert images["shape"] == [SIZE, SIZE, 3]
    exact = frechet_distance(features_of(ours), features_of(real))
    assert images["fid"]["value"] == pytest.approx(exact, rel=1e-3)
    assert images["fid"]["features"] == 5
    pixel_distance = frechet_distance(ours.flatten(1), real.flatten(1))
    assert images["pixel_frechet_distance"] == pytest.approx(pixel_distance, rel=1e-6)
    assert images["copied_share"] == pytest.approx(2 / 19) and images["nearest_mean_difference"] is None
    assert found["samples"] == {
        "file": str(samples), "count": 19, "tokens": 19 * SIZE * SIZE * 3, "unit": "pixels"
    }  # fmt: skip
    assert found["generative_perplexity"] is found["unigram_entropy"] is found["mauve"] is None


def test_the_size_is_that_of_the_first_picture_and_large_ones_have_no_pixel_distance(
    networks, folder, tmp_path, capsys
):
    samples = write_noise(tmp_path / "samples", 5)
    words = ["score", samples, "--reference", folder, "--fid-network", networks["pt"]]
    images = told(capsys, *words)["images"]
    assert images["shape"] == [18, 18, 3] and images["pixel_frechet_distance"] > 0
    exact = frechet_distance(features_of(pixels_of(samples, 18)), features_of(pixels_of(folder, 18)))
    assert images["fid"]["value"] == pytest.approx(exact, rel=1e-3)
    # 36 * 36 * 3 = 3888 numbers, 37 * 37 * 3 = 4107.
    assert 37 * 37 * 3 > image_distances.PIXEL_LIMIT == 4096
    large = told(capsys, *words, "--size", 37)["images"]
    assert large["pixel_frechet_distance"] is None
    assert large["fid"]["value"] > 0 and large["copied_share"] == 0
    out = tmp_path / "result.json"
    assert main([str(word) for word in [*words, "--size", 37, "--out", out]]) == 0
    said = capsys.readouterr().out
    assert f"against {COUNT} images: FID " in said and "pixel" not in said.splitlines()[1]


def test_no_more_than_a_batch_is_in_memory(networks, folder, tmp_path, capsys, monkeypatch):
    sizes = []
    real = image_distances.FeatureNetwork.forward

    def forward(self, images):
        sizes.append(len(images))
        return real(self, images)

    monkeypatch.setattr(image_distances.FeatureNetwork, "forward", forward)
    samples = write_noise(tmp_path / "samples", 7)
    told(capsys, "score", samples, "--reference", folder, "--fid-network", networks["pt"],
         "--score-batch", 5)  # fmt: skip
    # The trial, 24 reference images, 7 samples.
    assert sizes == [2, 5, 5, 5, 5, 4, 5, 2]


def test_a_checkpoint_against_the_pictures_it_was_trained_on(run, networks, folder, tmp_path, capsys):
    file = tmp_path / "samples.npy"
    found = told(capsys, "evaluate", run, "--count", 9, "--times", 1, "--save-samples", file,
                 "--fid-network", networks["pt2"])  # fmt: skip
    tokenizer = read_tokenizer(find(run))
    assert tokenizer is not None
    tokens = torch.from_numpy(numpy.load(file))
    # What is held out is told by tokens; what is compared are the pictures themselves.
    pictures = pixels_of(folder)
    cached = torch.from_numpy(numpy.load(next((run.parent / "cache").iterdir())).astype("int64"))
    encoded = tokenizer.encode(pictures)
    rows = [int((encoded == row).all(dim=1).nonzero()[0]) for row in cached]
    assert sorted(rows) == list(range(COUNT))
    train, held_out = pictures[rows[HELD_OUT:]], pictures[rows[:HELD_OUT]]
    images = found["images"]
    assert (images["samples"], images["reference_images"]) == (9, COUNT - HELD_OUT)
    decoded = tokenizer.decode(tokens)
    exact = frechet_distance(features_of(decoded), features_of(train))
    assert images["fid"]["value"] == pytest.approx(exact, rel=1e-3)
    pixel_distance = frechet_distance(decoded.flatten(1), train.flatten(1))
    assert images["pixel_frechet_distance"] == pytest.approx(pixel_distance, rel=1e-6)
    # A copy is one of tokens: no decoded picture equals a real one in every pixel.
    nearest = (tokens[:, None] != cached[None, HELD_OUT:]).sum(dim=2).amin(dim=1)
    assert images["nearest_mean_difference"] == pytest.approx(float(nearest.double().mean()))
    assert images["copied_share"] == float((nearest == 0).double().mean())
    assert found["samples"] == {"count": 9, "tokens": 9 * 16, "unit": "samples"}
    real = found["held_out"]["scores"]["images"]
    assert found["held_out"]["sequences"] == real["samples"] == HELD_OUT
    exact = frechet_distance(features_of(held_out), features_of(train))
    assert real["fid"]["value"] == pytest.approx(exact, rel=1e-3)


def test_a_checkpoint_against_a_folder_is_its_samples_against_it(run, networks, folder, tmp_path, capsys):
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    samples = tmp_path / "samples"
    against = ("--reference", folder, "--fid-network", networks["pt"])
    found = told(capsys, "evaluate", moved, "--count", 5, "--no-held-out", "--save-samples", samples,
                 *against)  # fmt: skip
    assert found["held_out"] is None and found["images"]["reference_images"] == COUNT
    # Tokens of these pictures are not known, and equal pixels would mean nothing.
    assert found["images"]["copied_share"] is None
    assert len(list(samples.iterdir())) == 5 and (tmp_path / "samples.grid.png").is_file()
    again = told(capsys, "score", samples, *against)
    assert again["samples"]["count"] == 5 and again["sampling"]["seed"] == 0
    for key in ("fid", "pixel_frechet_distance", "shape", "reference_images"):
        assert again["images"][key] == found["images"][key]
    assert again["images"]["copied_share"] == 0
    grid = tmp_path / "grid.png"
    words = ["evaluate", moved, "--count", 2, "--no-held-out", "--save-samples", grid]
    assert told(capsys, *words)["images"] is None
    assert Image.open(grid).size == (2 * 66 - 2, 64)


def test_grids_of_levels_against_a_folder(tmp_path, capsys):
    rng = numpy.random.default_rng(0)
    tokens = rng.integers(0, 4, (12, 4, 4))
    numpy.save(tmp_path / "samples.npy", tokens)
    (tmp_path / "real").mkdir()
    for i, values in enumerate(rng.integers(0, 3, (15, 4, 4))):
        Image.fromarray((values * 85).astype("uint8")).save(tmp_path / "real" / f"{i:02}.png")
        numpy.save(tmp_path / f"{i:02}.npy", values)
    real = numpy.stack([numpy.load(tmp_path / f"{i:02}.npy") for i in range(15)])
    images = told(capsys, "score", tmp_path / "samples.npy", "--grid", "4,4", "--levels", 4,
                  "--reference", tmp_path / "real")["images"]  # fmt: skip
    exact = frechet_distance(*(torch.from_numpy(x).flatten(1) for x in (tokens, real)))
    assert images["pixel_frechet_distance"] == pytest.approx(exact)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["score", "{pictures}"], "allowed: one of real images"),
        (["score", "{empty}", "--reference", "{pictures}"], "empty: no images; allowed: names that end in"),
        (["score", "{pictures}", "--reference", "{empty}"], "empty: no images"),
        (["score", "{pictures}", "--reference", "{none}"], "got a name that ends in ''"),
        (["score", "{pictures}", "--reference", "{txt}"], "got no tokens of one length"),
        (["score", "{pictures}", "--reference", "{pictures}", "--size", "0"], "--size: got 0; allowed: 1"),
        (["score", "{pictures}", "--reference", "{pictures}", "--grid", "4,4"], "allowed: --size"),
        (["score", "{pictures}", "--reference", "{pictures}", "--model", "lm"], "language model for images"),
        (["score", "{txt}", "--size", "4"], "--size: got 4 without a folder"),
        (["score", "{txt}", "--reference", "{pictures}"], "--reference: got the folder"),
        (["score", "{pictures}", "--reference", "{pictures}", "--fid-network", "{none}"], "no file"),
        (["score", "{pictures}", "--reference", "{pictures}", "--fid-network", "{pt2}"], "uint8 images [2, 3, 20, 20]"),
        (["score", "{pictures}", "--reference", "{damaged}"], "bad.png: not an image that can be read"),
        (["score", "{npy}", "--grid", "2,3", "--reference", "{pictures}"], "got 2 x 3 with a folder of images"),
        (["evaluate", "{run}", "--reference", "{empty}"], "empty: no images"),
        (["evaluate", "{run}", "--grid", "4,4"], "--grid: got it for tokens of a VQModel"),
        (["evaluate", "{run}", "--no-held-out", "--fid-network", "{pt2}"], "without a reference"),
        (["evaluate", "{run}", "--save-samples", "{none}/a.png"], "--save-samples: there is no folder"),
        (["evaluate", "{run}", "--save-samples", "{none}.txt"], "or a folder"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words, said, run, networks, folder, tmp_path, capsys):
    for name in ("empty", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "bad.png").write_bytes((folder / "b" / "1.png").read_bytes()[:60])
    (tmp_path / "a.txt").write_text("a b\n")
    numpy.save(tmp_path / "a.npy", numpy.zeros((3, 6), int))
    places = {name: tmp_path / name for name in ("empty", "damaged", "none")}
    places |= {"pictures": folder, "txt": tmp_path / "a.txt", "npy": tmp_path / "a.npy"}
    places |= {"run": run, **networks}
    assert main([word.format(**places) for word in words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ggm: error: ") and said in error
    assert error.count("\n") == 1
