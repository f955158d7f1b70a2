"""The jobs of the fields of use: shapes, traces, deterministic disjoint data, mistakes told at once, and that they learn."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.trace import trace_job
from chinchilla_sim.models import bert, dlrm, fraud, gpt, resnet, translation, unet
from chinchilla_sim.models.metrics import area_under_curve, average_precision
from chinchilla_sim.models.text import paragraphs_of, running_text

MODULES: dict[str, Any] = {
    "bert": bert,
    "dlrm": dlrm,
    "fraud": fraud,
    "gpt": gpt,
    "resnet": resnet,
    "translation": translation,
    "unet": unet,
}
NAMES = sorted(MODULES)
LARGE_PARAMETERS = {
    "resnet": 25_557_032,  # He et al. 2016, as torchvision's resnet50
    "gpt": 124_439_808,  # Radford et al. 2019, as Hugging Face's gpt2
    "bert": 109_482_240 + 768 * 2 + 2,  # Devlin et al. 2018, as Hugging Face's bert-base-uncased, and a classifier
    "translation": 37_000 * 512 + 6 * (4 * 512 * 513 + 2_099_712 + 2 * 1024) + 6 * (8 * 512 * 513 + 2_099_712 + 3 * 1024),
    "fraud": 1_208 * 32 + 3 * 256 * (98 + 256 + 2) + 3 * 256 * (512 + 2) + 257,
    "dlrm": 1_664_000_000 + 499_521,
}


def job_of(name: str, **options: Any) -> Any:
    """The small job of a field."""
    return MODULES[name].build("small", **options)


def parts_of(inputs: Any) -> tuple[Tensor, ...]:
    """Inputs as a tuple."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def train(job: Any, steps: int, learning_rate: float) -> nn.Module:
    """A model after some steps of Adam with batches of 64."""
    torch.manual_seed(0)
    model: nn.Module = job.model()
    optimizer, done = torch.optim.Adam(model.parameters(), lr=learning_rate), 0
    while True:
        for inputs, targets in job.batches("train", 0, done):
            for start in range(0, len(targets), 64):
                optimizer.zero_grad()
                part = slice(start, start + 64)
                job.loss(model(*(tensor[part] for tensor in parts_of(inputs))), targets[part]).backward()
                optimizer.step()
                done += 1
                if done == steps:
                    return model


@pytest.mark.parametrize("name", NAMES)
def test_small_model_traces_without_a_gap(name: str) -> None:
    """Every parameter is in the graph, and nothing had to be recorded or guessed."""
    job = job_of(name)
    graph = trace_job(job, 4, True, name)
    assert graph.parameter_count == sum(parameter.numel() for parameter in job.model().parameters())
    assert graph.notes == ()


@pytest.mark.parametrize("name", sorted(LARGE_PARAMETERS))
def test_full_size_has_the_published_parameters(name: str) -> None:
    """The default preset is the published network."""
    with torch.device("meta"):
        model = MODULES[name].build().model()
    assert sum(parameter.numel() for parameter in model.parameters()) == LARGE_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_batches_look_like_the_example_and_repeat(name: str) -> None:
    """Same shapes and types as the example batch; the same seed and epoch give the same batches, another epoch others."""
    job = job_of(name)
    example, example_targets = job.example_batch(1)
    inputs, targets = next(iter(job.batches("train", 3, 1)))
    again, _ = next(iter(job_of(name).batches("train", 3, 1)))
    other, _ = next(iter(job.batches("train", 3, 2)))
    for ours, theirs in zip(parts_of(inputs), parts_of(example), strict=True):
        assert ours.shape[1:] == theirs.shape[1:] and ours.dtype == theirs.dtype
    assert targets.shape[1:] == example_targets.shape[1:] and targets.dtype == example_targets.dtype
    assert all(torch.equal(a, b) for a, b in zip(parts_of(inputs), parts_of(again), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(parts_of(inputs), parts_of(other), strict=True))
    with pytest.raises(ValueError, match="must be"):
        job.batches("test", 0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_validation_samples_are_not_trained_on(name: str) -> None:
    """No sample to validate with is one to train on."""
    splits = job_of(name).splits

    def rows(samples: Any) -> set[bytes]:
        return {b"".join(np.ascontiguousarray(array[index]).tobytes() for array in samples.inputs) for index in range(len(samples))}

    train_rows = rows(splits.train)
    shared = train_rows & rows(splits.validation)
    assert not shared


LEARNS = {
    "bert": (150, 2e-3, "validation_accuracy", 0.4),
    "dlrm": (200, 1e-2, "validation_auc", 0.6),
    "fraud": (150, 1e-2, "validation_average_precision", 0.5),
    "gpt": (160, 5e-3, "validation_accuracy", 0.28),
    "resnet": (40, 5e-3, "validation_accuracy", 0.6),
    "translation": (60, 3e-3, "validation_token_accuracy", 0.5),
    "unet": (40, 5e-3, "validation_iou", 0.3),
}


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name: str) -> None:
    """After a few steps the model is clearly better than a fresh one, and than knowing nothing."""
    steps, learning_rate, metric, bar = LEARNS[name]
    job = job_of(name)
    torch.manual_seed(0)
    before = job.evaluate(job.model())[metric]
    after = job.evaluate(train(job, steps, learning_rate))[metric]
    assert after > max(bar, before + 0.05)


@pytest.mark.parametrize("name", NAMES)
def test_all_mistakes_are_told_at_once(name: str) -> None:
    """An unknown option, a wrong type and an unknown preset stand in one error."""
    with pytest.raises(ScenarioError) as raised:
        MODULES[name].build("smal", depht=3, classes="many", width=0, layers=-1, tokens=2.5)
    text = str(raised.value)
    assert "model.options.depht: is no option of this model" in text and "model.options.preset: 'smal' is not known here" in text
    assert len(raised.value.mistakes) == 6


def test_options_that_contradict_each_other() -> None:
    """Heads must divide the width; an account must have room for a burst; sines need an even width."""
    for build, options, what in (
        (gpt.build, {"width": 65}, "65 is not divisible by heads = 4"),
        (bert.build, {"tokens": 64}, "64 are more than positions = 32"),
        (fraud.build, {"tokens": 5}, "must be at least 12, not 5"),
        (translation.build, {"width": 63, "heads": 3}, "63 is odd"),
        (resnet.build, {"depth": 20}, "20 is not known here; write one of 10, 18, 34, 50, 101, 152"),
    ):
        with pytest.raises(ScenarioError, match=what):
            build("small", **options)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fraud"])
def test_full_size_without_data_says_what_fits(name: str) -> None:
    """The published sizes have no data here: planning works, running says what the data need."""
    job = MODULES[name].build()
    job.example_batch(1)
    with pytest.raises(ScenarioError, match="small"):
        job.batches("train", 0, 0)


def test_translation_writes_numbers_as_people_do() -> None:
    """Digits in, English words out, with start, end and padding."""
    words = translation.TOKENS
    splits = job_of("translation").splits
    source, shifted = (array[0] for array in splits.train.inputs)
    target = splits.train.targets[0]
    assert shifted[0] == translation.START and (shifted[1:] == target[:-1])[target[:-1] > translation.END].all()
    number = int("".join(words[index] for index in source if index > translation.END))
    text = " ".join(words[index] for index in target if index > translation.END)
    assert text == " ".join(translation.in_words(number))


@pytest.mark.parametrize(("number", "text"), [(0, "zero"), (17, "seventeen"), (90, "ninety"), (410_007, "four hundred ten thousand seven")])
def test_numbers_in_words(number: int, text: str) -> None:
    """Examples by hand."""
    assert " ".join(translation.in_words(number)) == text


def test_text_is_real_and_said_once() -> None:
    """The language reference is there, and no paragraph twice."""
    paragraphs = running_text().split("\n\n")
    assert len(paragraphs) > 1_000 and "lambda" in running_text()
    assert len(set(paragraphs_of("compound"))) == len(paragraphs_of("compound"))


def test_scores_by_hand() -> None:
    """A perfect ranking scores 1, a reversed one 0 (area) or the share of positives found late, ties one half."""
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    assert area_under_curve(np.array([1.0, 2.0, 3.0, 4.0]), labels) == 1.0
    assert area_under_curve(np.array([4.0, 3.0, 2.0, 1.0]), labels) == 0.0
    assert area_under_curve(np.zeros(4), labels) == 0.5
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), labels) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert average_precision(np.zeros(4), labels) == 0.5
