"""Runs of the DCGAN: grids, scores with their protocol, and generation."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from dcgan_runs import DCGAN, SHORT, run_dir
from PIL import Image
from safetensors.torch import load_model
from several_lines import on_ranks
from torchmetrics.image.fid import _compute_fid

import trainer
from tasks.dcgan.features import build_features, load_classifier
from tasks.dcgan.module import DCGANModule
from tasks.dcgan.networks import to_pixels
from tasks.dcgan.pictures import over_time, save_grid
from tasks.dcgan.samples import CollapseWarning, SampleGrids
from trainer.cli import main
from trainer.data.images.module import ImageDataModule
from trainer.errors import UserError
from trainer.run.stored_config import read_stored_config


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, DCGANModule]:
    monkeypatch.chdir(folder)
    stored = read_stored_config(run_dir(folder))
    config, task = stored.config, stored.task
    data = task.build_data(config)
    data.load(torch.device("cpu"))
    module = task.build_module(config, data)
    load_model(module, str(run_dir(folder) / "model.safetensors"))
    assert isinstance(module, DCGANModule)
    return data, module.eval()


def generator(run: Path) -> Any:
    stored = read_stored_config(run)
    return stored.task.load_inference(stored.config, run, torch.device("cpu"))


def test_grids_are_written_at_the_cadence_and_over_time(runs: Path) -> None:
    samples = run_dir(runs) / "samples"
    grids = sorted(path.name for path in samples.glob("step-*.png"))
    assert grids == [f"step-{step:08d}.png" for step in (0, 3, 6, 7)]
    assert Image.open(samples / grids[0]).size == (3 * 32 + 4, 3 * 32 + 4)
    assert Image.open(samples / "strip.png").size == (4 * 32 + 6, 8 * 32 + 14)
    animation = Image.open(samples / "animation.gif")
    assert animation.n_frames == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_scores_are_those_of_the_formulas_and_name_their_protocol(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = map(json.loads, (run_dir(runs) / "scores.jsonl").read_text().splitlines())
    assert line["network"] == "run:outputs/cnn/lenet"
    assert line["num_images"] == 41
    assert line["num_features"] == 84
    assert line["preprocessing"] == "8 bits, the run's own normalisation"
    assert len(line["sha256"]) == 64

    data, module = trained(runs, monkeypatch)
    batch = data.sets["val"].gather(np.arange(41), 41, 0)
    lenet: Any = load_classifier(runs / "outputs" / "cnn" / "lenet")

    def features(images: torch.Tensor) -> torch.Tensor:
        maps = (images / 255 - lenet.transform.mean) / lenet.transform.std
        for conv in (lenet.model.conv1, lenet.model.conv2):
            maps = torch.max_pool2d(conv(maps).relu(), 2)
        return lenet.model.hidden2(lenet.model.hidden1(maps.flatten(1)).relu()).relu().double()

    real, fake = features(batch.images), features(module.sample(batch.noise))
    expected = _compute_fid(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov()).item()
    assert line["frechet_distance"] == pytest.approx(expected, rel=1e-3)


def test_eval_and_predict_on_one_rank_and_two(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are those of training, to which an evaluation adds none; images are the same to the last bit."""
    monkeypatch.chdir(runs)
    before = (run_dir(runs) / "scores.jsonl").read_bytes()
    (line,) = map(json.loads, before.decode().splitlines())
    evaluation = ["eval", f"run={run_dir(runs)}"]
    generation = ["predict", f"run={run_dir(runs)}", "n=25"]
    assert main(evaluation) == 0
    check_scores(runs, line)
    assert main(generation) == 0
    folder = run_dir(runs) / "samples" / "generated-seed0-n25"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == [*(f"{number:06d}.png" for number in range(25)), "grid.png"]
    assert len(set(first.values())) == 26
    shutil.rmtree(folder)
    (run_dir(runs) / "eval.json").unlink()
    assert on_ranks(2, tmp_path, [(runs, evaluation), (runs, generation)]) == [0, 0]
    check_scores(runs, line)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert (run_dir(runs) / "scores.jsonl").read_bytes() == before


def check_scores(runs: Path, line: dict[str, Any]) -> None:
    scores = json.loads((run_dir(runs) / "eval.json").read_text())
    for name in ("frechet_distance", "kernel_distance"):
        assert scores[f"val/{name}"] == pytest.approx(line[name], rel=1e-3, abs=1e-6)


def test_a_torn_last_score_breaks_no_later_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    run = Path(shutil.copytree(run_dir(runs), tmp_path / "torn", symlinks=True))
    scores = (run / "scores.jsonl").read_text() + '{"step": 9'
    (run / "scores.jsonl").write_text(scores)
    assert main(["eval", f"run={run}"]) == 0
    assert (run / "scores.jsonl").read_text() == scores


def test_images_are_those_of_the_module_and_depend_on_the_seed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module = trained(runs, monkeypatch)
    inference = generator(run_dir(runs))
    model: Any = trainer.load(run_dir(runs), device="cpu")
    with pytest.raises(
        trainer.UserError, match=r"^trainer\.precision=bf16-mixed: task=dcgan never predicts in mixed .*$"
    ):
        trainer.load(run_dir(runs), device="cpu", precision="bf16")
    trainer.load(run_dir(runs), device="cpu", precision="bf16-true")
    noise = inference.preprocess([0, 1, 2])["noise"]
    expected = module.sample(noise)[:, 0].numpy()
    for points in (3, model.noise(3), [0, 1, 2], list(model.noise(3))):
        np.testing.assert_array_equal(np.stack([np.asarray(image) for image in model(points)]), expected)
    np.testing.assert_array_equal(to_pixels(model.outputs(model.noise(3), batch_size=2))[:, 0], expected)
    folder = run_dir(runs) / "samples"
    for seed in (0, 1):
        assert main(["predict", f"run={run_dir(runs)}", "n=3", f"seed={seed}"]) == 0
    files = [np.asarray(Image.open(folder / "generated-seed0-n3" / f"00000{number}.png")) for number in range(3)]
    np.testing.assert_array_equal(np.stack(files), expected)
    other = np.asarray(Image.open(folder / "generated-seed1-n3" / "000000.png"))
    assert not np.array_equal(other, files[0])
    np.testing.assert_array_equal(other, np.asarray(model(3, seed=1)[0]))


def test_a_generator_as_a_function(runs: Path) -> None:
    inference = generator(run_dir(runs))
    example = inference.example_inputs()
    assert inference.network(**example.tensors).shape == (2, 1, 32, 32)
    point = inference.preprocess([4])["noise"][0].numpy()
    by_number, by_point = (inference([value])[0] for value in (4, point))
    assert by_number == by_point
    assert torch.equal(inference.outputs(5), inference.outputs(range(5))), "as trainer.export.load takes a number"
    (result,) = inference.postprocess(inference.outputs([4]))
    file = Image.open(io.BytesIO(base64.b64decode(result["png_base64"])))
    np.testing.assert_array_equal(np.asarray(file), np.asarray(by_number))
    for bad in ("a", [1.0, 2.0], [float("nan")] * 16):
        with pytest.raises(UserError, match="input 0: neither an integer nor 16 finite numbers"):
            inference([bad])


def test_a_run_copied_alone_generates_the_same(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the data, the cache, and the run whose features it was scored in."""
    copies = []
    for name in ("here", "there"):
        copies.append(Path(shutil.copytree(run_dir(runs), tmp_path / name / "run", symlinks=True)))
        monkeypatch.chdir(runs if name == "here" else tmp_path)
        assert main(["predict", f"run={copies[-1]}", "n=9"]) == 0
    first, second = ({p.name: p.read_bytes() for p in (c / "samples/generated-seed0-n9").iterdir()} for c in copies)
    assert len(first) == 10
    assert first == second


def test_features_come_from_the_classifiers_run_alone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ImageDataModule, device: torch.device) -> None:
        raise AssertionError("training data was read")

    monkeypatch.setattr(ImageDataModule, "load", refuse)
    classifier: Any = load_classifier(runs / "outputs" / "cnn" / "lenet")
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    spec = json.loads((runs / "outputs" / "cnn" / "lenet" / "inputs.json").read_text())
    expected = classifier.model((images / 255 - torch.tensor(spec["mean"])) / torch.tensor(spec["std"]))
    torch.testing.assert_close(classifier.logits(images), expected)


@pytest.mark.parametrize("missing", [True, False])
def test_rank_0_decides_whether_a_grid_is_missing(
    missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank sees the opposite, as on a stale network file system; drawing a grid is collective."""
    monkeypatch.setattr("tasks.dcgan.samples.decide_on_rank_0", lambda function: missing)
    if missing:
        save_grid(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), tmp_path / "samples" / "step-00000000.png")
    drawn: list[int] = []

    def draw() -> torch.Tensor:
        drawn.append(1)
        return torch.zeros(2, 1, 32, 32)

    task: Any = SimpleNamespace(sample_every_n_steps=5)
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path, is_global_zero=False, global_step=0)
    grids = SampleGrids(task, 32, draw)
    grids.on_train_start(trainer, pl.LightningModule())
    grids.on_train_end(trainer, pl.LightningModule())
    assert len(drawn) == (2 if missing else 0)


def test_a_walk_is_a_row_of_the_grid(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    assert main(["predict", f"run={run_dir(runs)}", "n=12", "interpolate=6"]) == 0
    folder = run_dir(runs) / "samples" / "walk6-seed0-n12"
    assert len(list(folder.glob("0*.png"))) == 12
    assert Image.open(folder / "grid.png").size == (6 * 34 - 2, 2 * 34 - 2)


def test_collapse_is_reported_once_and_only_when_it_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    class Step:
        global_step, is_global_zero = 0, True

    class Batch:
        micro_batches = [type("Micro", (), {"num_valid": 10})]

    watch, trainer = CollapseWarning(5), Step()

    def steps(count: int, real: float, fake: float) -> str:
        for _ in range(count):
            trainer.global_step += 1
            outputs = {"d_real": torch.tensor(10 * real), "d_fake_before": torch.tensor(10 * fake)}
            watch.on_train_batch_end(trainer, None, outputs, Batch(), 0)  # pyright: ignore[reportArgumentType]
        return capsys.readouterr().err

    assert steps(10, 1.0, 0.0) == ""
    assert steps(5, 0.7, 0.3) == ""
    assert "D(x)=1.000 and D(G(z))=0.000" in steps(15, 1.0, 0.0)
    assert steps(50, 1.0, 0.0) == ""
    assert steps(5, 0.5, 0.5) == ""
    assert "has stopped learning" in steps(15, 0.001, 0.002)


def test_a_generator_of_one_image_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """With a tiny learning rate the generator stays untrained, and its images hardly differ."""
    monkeypatch.chdir(tmp_path)
    assert main([*DCGAN, *SHORT, "optimizer.lr=1e-9", "task.sample_every_n_steps=1"]) == 0
    assert "samples are almost one image" in capfd.readouterr().err


def test_strip_takes_first_and_last_and_at_most_ten(tmp_path: Path) -> None:
    for step in range(14):
        images = torch.full((4, 3, 32, 32), step * 10, dtype=torch.uint8)
        save_grid(images, tmp_path / f"step-{step:08d}.png")
    over_time(tmp_path, 32)
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert strip.shape == (4 * 34 - 2, 10 * 34 - 2, 3)
    assert (strip[0, 0, 0], strip[0, -1, 0]) == (0, 130)


def test_images_of_another_size_are_resized_for_a_classifier(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    network = build_features("run:outputs/cnn/lenet", (1, 64, 64))
    assert network.preprocessing.startswith("8 bits, resized to 32x32 (bilinear, antialias)")
    small = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    enlarged = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert network(enlarged).shape == (2, 84)
