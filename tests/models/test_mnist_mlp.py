"""The built-in job keeps the contract that planner and runtime rely on, and learns."""

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.models.digits import load_digits
from chinchilla_sim.models.mnist_mlp import MnistMlp, build


@pytest.fixture(scope="module")
def job() -> MnistMlp:
    """The job as a scenario without options gets it."""
    return build()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small layers on several threads that spin beside busy cores take 20 times as long."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def epoch_of(chunks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All inputs and all targets of an epoch."""
    inputs, targets = zip(*chunks, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def train(job: MnistMlp, epochs: int) -> nn.Module:
    """Adam at 1e-3 with batches of 64, one process, seed 0."""
    torch.manual_seed(0)
    model = job.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        inputs, targets = epoch_of(job.batches("train", 0, epoch))
        for start in range(0, len(inputs), 64):
            optimizer.zero_grad()
            job.loss(model(inputs[start : start + 64]), targets[start : start + 64]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def test_model_is_the_article_network(job: MnistMlp) -> None:
    """784-512-10 as linear, ReLU, linear: 407,050 parameters in float32 and nothing else in the graph."""
    model = job.model()
    assert [type(layer) for layer in model.children()] == [nn.Linear, nn.ReLU, nn.Linear]
    assert sum(parameter.numel() for parameter in model.parameters()) == 784 * 512 + 512 + 512 * 10 + 10
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_widths_are_general() -> None:
    """Any number of layers, from the list that a scenario file gives; no ReLU after the last."""
    model = build(widths=[784, 30, 20, 10]).model()
    assert [layer.out_features for layer in model.children() if isinstance(layer, nn.Linear)] == [30, 20, 10]
    assert isinstance(list(model.children())[-1], nn.Linear)


def test_torch_seed_decides_the_parameters(job: MnistMlp) -> None:
    """The runtime seeds torch: the same seed gives the same parameters on every rank."""
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(torch.cat([parameter.detach().flatten() for parameter in job.model().parameters()]))
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_contract_holds_on_the_meta_device() -> None:
    """Model, example batch and loss need no memory and no file to be planned."""
    job = build(data="/no/such/folder", widths=(784, 100_000, 100_000, 10))
    with torch.device("meta"):
        inputs, targets = job.example_batch(64)
        outputs = job.model()(inputs)
        loss = job.loss(outputs, targets)
    assert (inputs.shape, inputs.dtype) == ((64, 784), torch.float32)
    assert (targets.shape, targets.dtype) == ((64,), torch.int64)
    assert outputs.shape == (64, 10)
    assert loss.shape == () and loss.is_meta


def test_example_batch_looks_like_a_real_one(job: MnistMlp) -> None:
    """What is planned is what runs: same dtypes, same shape of a sample, same device."""
    examples, reals = job.example_batch(3), next(iter(job.batches("train", 0, 0)))
    for example, real in zip(examples, reals, strict=True):
        assert (example.dtype, example.shape[1:], example.device) == (real.dtype, real.shape[1:], real.device)


def test_loss_is_the_mean_over_the_batch(job: MnistMlp) -> None:
    """Ten equal scores cost ln 10, however many samples; equal microbatches average to the batch."""
    torch.manual_seed(0)
    outputs, targets = torch.randn(8, 10), torch.arange(8)
    torch.testing.assert_close(job.loss(torch.zeros(5, 10), torch.arange(5)), torch.tensor(10.0).log())
    halves = (job.loss(outputs[:4], targets[:4]) + job.loss(outputs[4:], targets[4:])) / 2
    torch.testing.assert_close(job.loss(outputs, targets), halves)


def test_batches_depend_on_seed_and_epoch_alone(job: MnistMlp) -> None:
    """Another rank, with other global generators, gets the same bytes."""
    inputs, targets = epoch_of(job.batches("train", 3, 5))
    torch.manual_seed(99)
    np.random.seed(99)
    again_inputs, again_targets = epoch_of(build().batches("train", 3, 5))
    assert torch.equal(inputs, again_inputs) and torch.equal(targets, again_targets)


@pytest.mark.parametrize(("seed", "epoch"), [(3, 6), (4, 5), (5, 3)])
def test_other_seed_or_epoch_gives_other_batches(job: MnistMlp, seed: int, epoch: int) -> None:
    """Each epoch of each seed is shuffled and shifted anew; seed and epoch are not confused."""
    inputs, targets = epoch_of(job.batches("train", 3, 5))
    other_inputs, other_targets = epoch_of(job.batches("train", seed, epoch))
    assert not torch.equal(inputs, other_inputs) and not torch.equal(targets, other_targets)


def test_batches_do_not_touch_global_generators(job: MnistMlp) -> None:
    """A rank that reads data draws the same dropout as one that does not."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epoch_of(job.batches("train", 0, 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_unshifted_epoch_holds_every_image_once() -> None:
    """Without shifts an epoch is a permutation of the training images, each with its own label, as fractions of 255."""
    inputs, targets = epoch_of(build(shift_pixels=0).batches("train", 0, 0))
    samples = load_digits().train
    pairs = {image.tobytes(): int(label) for image, label in zip(samples.images, samples.labels, strict=True)}
    bytes_again = (inputs.numpy() * 255).round().astype(np.uint8)
    assert {image.tobytes(): int(label) for image, label in zip(bytes_again, targets, strict=True)} == pairs
    assert len(inputs) == 9000 and inputs.min() == 0 and inputs.max() == 1


def test_validation_is_neither_shuffled_nor_shifted(job: MnistMlp) -> None:
    """Every epoch is validated on the same 1,000 images."""
    inputs, targets = epoch_of(job.batches("validation", 0, 0))
    other_inputs, _ = epoch_of(job.batches("validation", 1, 2))
    samples = load_digits().validation
    assert torch.equal(inputs, other_inputs)
    assert targets.tolist() == samples.labels.tolist()
    np.testing.assert_allclose(inputs.numpy() * 255, samples.images.reshape(1000, 784), atol=1e-4)


def test_unknown_split_is_refused(job: MnistMlp) -> None:
    """A split is "train" or "validation"; the error comes at the call, not in the loop."""
    with pytest.raises(ValueError, match="not 'test'"):
        job.batches("test", 0, 0)


@pytest.mark.usefixtures("one_thread")
def test_short_training_learns(job: MnistMlp) -> None:
    """Two epochs at a constant 1e-3 reach more than 90 %."""
    score = job.evaluate(train(job, epochs=2))
    assert score["validation_accuracy"] > 0.9
    assert score["validation_loss"] < 0.4


def test_evaluate_by_hand(job: MnistMlp) -> None:
    """A model that always says 7 is right for the 107 sevens, and its loss follows from its scores."""
    model = nn.Linear(784, 10)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.nn.functional.one_hot(torch.tensor(7), 10) * 2.0)
    log_sum = float(np.log(9 + np.exp(2)))
    assert job.evaluate(model) == pytest.approx({"validation_accuracy": 0.107, "validation_loss": log_sum - 2 * 0.107}, rel=1e-5)


def test_evaluate_restores_training_flags(job: MnistMlp) -> None:
    """Dropout is off while evaluating; afterwards each module trains or not as before, also after a failure."""
    model = nn.Sequential(nn.Linear(784, 10), nn.Dropout(0.9), nn.Sequential(nn.Identity()).eval())
    flags = [module.training for module in model.modules()]
    assert job.evaluate(model) == job.evaluate(model)
    assert [module.training for module in model.modules()] == flags
    model.append(nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        job.evaluate(model)
    assert model.training and model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_folder_is_used(mnist_folder: Path) -> None:
    """The user's own IDX files train the job when a folder is given."""
    job = build(data=str(mnist_folder), widths=(20, 8, 3))
    inputs, targets = epoch_of(job.batches("train", 0, 0))
    assert (inputs.shape, targets.shape) == ((30, 20), (30,))
    assert set(job.evaluate(job.model())) == {"validation_accuracy", "validation_loss"}


def test_data_that_do_not_fit_the_network_are_refused(mnist_folder: Path) -> None:
    """Both ends of the network are compared with the data, and both mistakes are told at once."""
    with pytest.raises(ScenarioError) as caught:
        next(build(data=str(mnist_folder), widths=(784, 2)).batches("train", 0, 0))
    assert [mistake.cure for mistake in caught.value.mistakes] == ["write 20", "write 3"]


def test_wrong_arguments_are_refused_at_once() -> None:
    """Widths and shift are checked where the job is built, all mistakes together."""
    with pytest.raises(ScenarioError) as caught:
        build(widths=[784, 0], shift_pixels=-1)
    assert [mistake.where for mistake in caught.value.mistakes] == ["widths", "shift_pixels"]


def test_job_travels_to_another_process(job: MnistMlp) -> None:
    """A launcher may pickle the job; equal jobs are equal there."""
    assert pickle.loads(pickle.dumps(job)) == job
