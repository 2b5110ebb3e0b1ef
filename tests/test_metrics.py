"""What the metrics of runs refuse, and what becomes of rows that a table holds already."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from manifoldgd.config.commands import MetricsConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.data.classes import ImageClass
from manifoldgd.data.images import ArrayImages
from manifoldgd.distillation.distill import distill
from manifoldgd.errors import InputError
from manifoldgd.evaluation.coverage import class_separation, coverage, nearest_distances
from manifoldgd.evaluation.measurement import (
    KEY,
    choose_source,
    measure_runs,
    open_measured,
    read_metrics,
)
from manifoldgd.evaluation.metrics import BETTER, kid, median_square_distance, off_manifold
from manifoldgd.evaluation.neighbors import neighbor_scores
from manifoldgd.evaluation.scores import label_robust_score


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(scope="module")
def runs(folder):
    "Two seeds of real images at random, one digit of each class: they need no backbone."
    made = []
    for seed in range(2):
        settings = DistillConfig(
            preset="random", ipc=1, seed=seed, out=str(folder / f"random-{seed}"), device="cpu"
        )
        made.append(str(distill(settings, progress=False)))
    return tuple(made)


@pytest.fixture
def config(runs, tmp_path):
    return MetricsConfig(
        runs, features="latents", draws=2, out=str(tmp_path / "metrics.csv"), device="cpu"
    )


def brightness(images):
    "A network that sees how bright the quarters of an image are."
    return torch.nn.functional.avg_pool2d(images, images.shape[-1] // 2).flatten(1)


class Brightness:
    "The same, as an object without a name of its own."

    def __call__(self, images):
        return brightness(images)


@pytest.mark.parametrize("n_real", [0, 1])
def test_a_class_without_two_real_latents_is_refused(n_real):
    points, real = torch.zeros(2, 3), torch.randn(5, 3)
    real_labels = torch.tensor([7] * n_real + [2] * (5 - n_real))
    with pytest.raises(InputError, match=f"at least 2 real latents of class 7, but got {n_real}"):
        off_manifold(points, torch.tensor([2, 7]), real, real_labels)


def test_neighbors_of_two_real_latents():
    "With one other real latent the plane is that point; with none but copies, too."
    real, labels = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.zeros(2)
    assert off_manifold(real, labels, real, labels).tolist() == [5, 5]
    same = torch.ones(4, 2)
    assert off_manifold(same, torch.zeros(4), same, torch.zeros(4)).tolist() == [0] * 4


@pytest.mark.parametrize("n", [1, 2, 4])
def test_images_without_an_area_span_nothing(n):
    points = torch.arange(float(n)).reshape(n, 1) * torch.ones(1, 5)  # on one line
    assert coverage(points, points) == {"hull": 0, "distance": 0}


def test_separation_of_more_points_than_a_block():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(600, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (600,), generator=generator)
    own, other = nearest_distances(points, labels)
    for c in range(3):
        mine, others = points[labels == c].numpy(), points[labels != c].numpy()
        to_own = NearestNeighbors(n_neighbors=2).fit(mine).kneighbors(mine)[0][:, 1]
        to_other = NearestNeighbors(n_neighbors=1).fit(others).kneighbors(mine)[0][:, 0]
        np.testing.assert_allclose(own[labels == c], to_own)
        np.testing.assert_allclose(other[labels == c], to_other)
        ratio = to_other.mean() / to_own.mean()
        assert class_separation(points, labels)[c].item() == pytest.approx(ratio)


@pytest.mark.parametrize("draws", [1, 0, -3])
def test_one_draw_has_no_spread(config, draws):
    with pytest.raises(InputError, match=f"`draws` to be between 2 and 1000, but got {draws}"):
        measure_runs(replace(config, draws=draws))


def test_no_run():
    with pytest.raises(InputError, match="Expected at least one set, but got none"):
        measure_runs(MetricsConfig(()))


def test_a_folder_without_a_run(config, folder):
    with pytest.raises(InputError, match="to be a set: a run, a folder of class folders"):
        measure_runs(replace(config, sets=(str(folder / "nothing"),)))


def test_runs_of_two_datasets(config, folder, runs):
    settings = DistillConfig(
        data=f"{runs[0]}/images", preset="random", ipc=1, out=str(folder / "other"), device="cpu"
    )
    other = str(distill(settings, progress=False))
    with pytest.raises(InputError, match="Expected sets of one dataset, but got .+, digits"):
        open_measured(replace(config, sets=(runs[0], other)))
    opened, data, labels = open_measured(replace(config, sets=(runs[0], other), data="digits"))
    assert [len(opened), len(data)] == [2, 1077]
    assert [numbers.tolist() for numbers in labels] == [list(range(10))] * 2


def test_real_data_of_other_classes(config, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(InputError, match="real images of the classes .* differ in .*cat, dog"):
        open_measured(replace(config, data=str(tmp_path)))


def test_a_run_is_opened_once(config, runs):
    opened, _, _ = open_measured(replace(config, sets=(runs[0], runs[0] + "/", runs[1])))
    assert [judged.place for judged in opened] == list(runs)


def test_latents_without_a_backbone(config):
    with pytest.raises(InputError, match="none of the runs has one. Name one with `--backbone`"):
        measure_runs(config)


def test_an_unknown_device(config):
    with pytest.raises(InputError, match="Expected `device`"):
        measure_runs(replace(config, features="student", device="abacus"))


@pytest.mark.parametrize("text", ["name,price\npears,3\n", "", "run\n"])
def test_a_file_that_is_no_table_stays_as_it_is(config, tmp_path, text):
    path = tmp_path / "notes.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="notes.csv to be a table of metrics"):
        measure_runs(replace(config, out=str(path)), brightness)
    assert path.read_text() == text


def test_a_folder_in_the_place_of_the_table(config, tmp_path):
    with pytest.raises(InputError, match="to be a table of metrics, but it is a folder"):
        measure_runs(replace(config, out=str(tmp_path)), brightness)


def test_rows_are_replaced_and_others_stay(config):
    rows = measure_runs(config, brightness, progress=False)
    metrics = [name for name in BETTER if name != "off_manifold"]
    assert set(rows.metric) == set(metrics)  # without a backbone nothing is off the manifold
    n = len(metrics)
    assert len(rows) == 2 * n
    assert set(rows.n_syn) == {10} and set(rows.n_floor) == {10} and set(rows.n_real) == {1077}
    assert rows[rows.metric.isin(["div", "hull"])].value.isna().all()
    assert set(rows.latents) == {""} and set(rows.scheduler) == {""}

    one = replace(config, sets=config.sets[:1])
    measure_runs(one, Brightness(), progress=False)
    again = measure_runs(one, brightness, progress=False)
    pd.testing.assert_frame_equal(again, rows[:n])
    stored = read_metrics(config.out)
    assert len(stored) == 3 * n and not stored.duplicated(KEY).any()
    assert stored.features.value_counts().to_dict() == {"brightness": 2 * n, "Brightness": n}
    pd.testing.assert_frame_equal(stored[-n:].reset_index(drop=True), again)


@pytest.mark.parametrize(
    "shape, size, seen",
    [
        ((3, 8, 8), None, (8, 1)),
        ((3, 8, 12), None, (8, 1)),
        ((3, 96, 128), None, (64, 1)),
        ((3, 96, 128), 80, (80, 1)),
        ((3, 8, 8, 3), None, (8, 3)),
    ],
)
def test_the_size_at_which_images_are_seen(shape, size, seen):
    arrays = np.zeros(shape, dtype=np.uint8)
    data = ArrayImages(arrays, [0, 0, 0], [ImageClass("all", "all")], "plain")
    source = choose_source(MetricsConfig(()), data, network=brightness, size=size)
    assert (source.size, source.channels) == seen


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_the_median_of_squared_distances_is_that_of_numpy(n):
    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    squares = [(a - b).square().sum().item() for i, a in enumerate(points) for b in points[:i]]
    assert median_square_distance(points) == pytest.approx(np.median(squares))


def test_kid_of_two_samples_of_one_distribution_is_zero_on_average():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 40, 6, generator=generator) for _ in range(200)]
    found = np.array([kid(x, y, subsets=1) for x, y in draws])
    assert abs(found.mean()) < 4 * found.std() / 200 ** .5
    assert kid(draws[0][0], draws[0][1] + 1) > found.max()


@pytest.mark.parametrize(
    "n_real, n_syn, missing",
    [
        (6, 5, {"recall"}),
        (5, 6, {"precision", "density", "coverage"}),
        (5, 5, {"precision", "density", "coverage", "recall"}),
        (6, 6, set()),
    ],
)
def test_balls_need_more_than_five_images(n_real, n_syn, missing):
    generator = torch.Generator().manual_seed(0)
    found = neighbor_scores(*(torch.randn(n, 2, generator=generator) for n in (n_real, n_syn)))
    assert {name for name, value in found.items() if np.isnan(value)} == missing


def test_a_set_with_itself_has_every_neighbor():
    points = torch.randn(700, 4, generator=torch.Generator().manual_seed(0))  # more than a block
    found = neighbor_scores(points, points)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert found["density"] == pytest.approx(6 / 5)  # itself and five neighbors


def test_a_score_takes_no_percent():
    with pytest.raises(InputError, match="`syn` to be between 0 and 1, but got 50.*in percent"):
        label_robust_score(real=.9, syn=50., random=.4)
