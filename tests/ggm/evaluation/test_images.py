import pytest
import torch

from ggm.evaluation.config import ImageShape
from ggm.evaluation.distances import copied_share, frechet_distance, nearest_differences
from ggm.evaluation.image_distances import FeatureNetwork, ImageComparison
from ggm.evaluation.images import grid_images, to_pixels
from ggm.evaluation.samples import Samples

SHAPE = ImageShape(3, 4, levels=4)
# How TorchScript files are made, and read, is deprecated in favour of torch.export.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Features(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 5, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images.float() / 255).relu().mean((2, 3), keepdim=True)


class WithLogits(Features):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = self.conv(images.float() / 255).relu().mean((2, 3))
        return features if return_features else features[:, :2]


def written(folder, kind: str):
    if kind == "pt2":
        example = torch.zeros(4, 3, SHAPE.height, SHAPE.width, dtype=torch.uint8)
        rows = torch.export.Dim("rows", min=1)
        program = torch.export.export(Features(), (example,), dynamic_shapes=({0: rows},))
        torch.export.save(program, folder / "net.pt2")
        return folder / "net.pt2"
    network = WithLogits() if kind == "logits" else Features()
    torch.jit.script(network).save(folder / "net.pt")
    return folder / "net.pt"


def drawn(count: int, seed: int, high: int = 4) -> torch.Tensor:
    return torch.randint(0, high, (count, SHAPE.length), generator=torch.Generator().manual_seed(seed))


def images_of(tokens: torch.Tensor):
    return grid_images(Samples(tokens=tokens), SHAPE, "samples")


def test_pixels_are_where_they_belong():
    grey = to_pixels(torch.tensor([[0, 1, 2, 3, 3, 2]]), ImageShape(2, 3, levels=4))
    assert grey.dtype == torch.uint8
    assert grey.tolist() == [[[[0, 85, 170], [255, 255, 170]]] * 3]
    colour = to_pixels(torch.arange(12)[None], ImageShape(2, 2, 3))
    assert colour.shape == (1, 3, 2, 2)
    assert colour[0, :, 0, 1].tolist() == [3, 4, 5]  # red, green, blue of the second pixel
    assert colour[0, 1].tolist() == [[1, 4], [7, 10]]


@pytest.mark.parametrize("kind", ["pt", "logits", "pt2"])
def test_fid_is_the_frechet_distance_of_the_features(tmp_path, kind):
    path = written(tmp_path, kind)
    network = FeatureNetwork(path, "cpu", SHAPE)
    assert network.num_features == 5
    samples, reference = drawn(41, 1, high=3), drawn(50, 2)
    comparison = ImageComparison(images_of(reference), network, batch=16)
    found = comparison.compare(images_of(samples))["fid"]["value"]  # batches of 16, 16, 9
    features = [Features()(to_pixels(x, SHAPE)).flatten(1).detach() for x in (samples, reference)]
    exact = frechet_distance(*features)
    assert found == pytest.approx(exact, rel=1e-3)
    # Other samples in between change nothing.
    comparison.compare(images_of(reference))
    assert comparison.compare(images_of(samples))["fid"]["value"] == found
    assert frechet_distance(features[0][:32], features[1]) != pytest.approx(exact, rel=1e-3)


def test_frechet_distance_by_hand_and_between_laws():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    # Exactly mean 0 and covariance 1, then known ones.
    first = (first - first.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(first.T)).T)
    second = first * torch.tensor([3.0, 1.0]) + torch.tensor([1.0, 2.0])
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + (3 - 1) ** 2, rel=1e-9)
    same = frechet_distance(drawn(2000, 3), drawn(2000, 4))
    other = frechet_distance(drawn(2000, 3, high=3), drawn(2000, 4))
    assert 0 <= same < 0.1 < 1 < other


def test_copies_are_counted():
    reference = drawn(30, 5)
    samples = torch.cat([reference[:3], drawn(9, 6)])
    assert copied_share(samples, reference) == pytest.approx(3 / 12)
    samples[0, 2] = (samples[0, 2] + 1) % 4
    assert copied_share(samples, reference) == pytest.approx(2 / 12)
    assert nearest_differences(samples, reference)[0] == 1
    # The nearest one is found wherever it is in a large reference.
    large = torch.cat([drawn(6000, 7), samples[:2], drawn(3000, 8)])
    assert nearest_differences(samples[:2], large).tolist() == [0, 0]


def test_all_that_is_said_of_images(tmp_path):
    path = written(tmp_path, "pt")
    network = FeatureNetwork(path, "cpu", SHAPE)
    samples, reference = drawn(20, 1), drawn(25, 2)
    comparison = ImageComparison(images_of(reference), network, batch=7)
    found = comparison.compare(images_of(samples))
    assert found["samples"] == 20 and found["reference_images"] == 25
    assert found["pixel_frechet_distance"] == pytest.approx(frechet_distance(samples, reference))
    assert found["fid"]["features"] == 5 and len(found["fid"]["network_sha256"]) == 64
    # A covariance needs two.
    one = comparison.compare(images_of(samples[:1]))
    assert one["pixel_frechet_distance"] is None and one["fid"]["value"] is None


def test_files_that_hold_no_network_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        FeatureNetwork(tmp_path / "net.pt", "cpu", SHAPE)
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="gives no features"):
        FeatureNetwork(bad, "cpu", SHAPE)

    class Maps(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(0)

    torch.jit.script(Maps()).save(tmp_path / "maps.pt")
    with pytest.raises(ValueError, match=r"got features \[3, 12\]"):
        FeatureNetwork(tmp_path / "maps.pt", "cpu", SHAPE)


@pytest.mark.parametrize(
    ("values", "words"),
    [((0, 4), "grid"), ((3, 4, 2), "grid"), ((3, 4, 1, 1), "levels"), ((3, 4, 1, 257), "levels")],
)
def test_shapes_are_checked(values, words):
    with pytest.raises(ValueError, match=words):
        ImageShape(*values)
