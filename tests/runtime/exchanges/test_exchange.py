"""Buckets exchanged for real among two and four ranks: sums, bytes on the wire, what feedback keeps, and what it is good for."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chinchilla_sim.cluster.topology import Backend, Link
from chinchilla_sim.cost.codec import CODECS, GRADIENTS_ONLY, LONGEST_VECTOR, exchange_kind, gradient_matrix, matrices_of, payload_bytes
from chinchilla_sim.errors import RunError
from chinchilla_sim.graph.task import Weight
from chinchilla_sim.planner.pricing.exchanges import exchange_among
from chinchilla_sim.runtime.exchanges.exchange import BucketExchange
from chinchilla_sim.runtime.exchanges.gradient_codecs import TopCodec
from chinchilla_sim.runtime.exchanges.low_rank import add_product
from chinchilla_sim.runtime.launching.launch import launch_ranks
from tests.runtime.exchange_buckets import SHAPES, gradient
from tests.simulator.test_engine import cables

LARGEST_ERROR = {"none": 1e-6, "fp16": 1e-3, "bf16": 1e-2, "int8": 2e-2}
Shapes = list[tuple[int, ...]]
shapes = st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank of one launch found."""
    folder = tmp_path_factory.mktemp("exchange")
    launch_ranks("tests.runtime.exchange_buckets", [str(folder)], 4, folder)
    return [json.loads((folder / f"exchange{rank}.json").read_text()) for rank in range(4)]


def planned(codec: str, of: Shapes, members: int) -> float:
    """Bytes that the plan's exchange of these tensors says a rank sends."""
    weights = [Weight(4.0 * torch.Size(shape).numel(), shape) for shape in of]
    payload = payload_bytes(codec, sum(weight.bytes for weight in weights), 4.0, matrices_of([w for w in weights if w.shape], 4.0))
    cluster = cables(members, Backend("plain"), Link(1e-3, 1e6))
    return exchange_among(cluster, exchange_kind(codec), payload, (tuple(range(members)),), rounds=CODECS[codec].rounds).sent_bytes


def test_bytes_on_the_wire_are_the_plans(by_rank: list[dict[str, Any]]) -> None:
    """Every rank sends what the exchange of the plan says, for every codec, shape and number of ranks."""
    for record in by_rank:
        for one in record["exchanges"]:
            assert one["wire_bytes"] == pytest.approx(planned(one["codec"], SHAPES[one["bucket"]], one["members"]), abs=1e-9), one


def test_sums_are_right_and_the_same_on_every_rank(by_rank: list[dict[str, Any]]) -> None:
    """Gradients are sums over the replicas to the codec's precision; all ranks hold the same bits, so that weights stay equal."""
    cases = [one for record in by_rank for one in record["exchanges"]]
    assert {(one["codec"], one["members"]) for one in cases} == {(codec, members) for codec in CODECS for members in (2, 4)}
    for one in cases:
        assert one["same"], one
        assert one["error"] <= LARGEST_ERROR.get(one["codec"], 10.0), one


def test_feedback_loses_nothing_among_ranks(by_rank: list[dict[str, Any]]) -> None:
    """All gradients of all ranks so far = what arrived + the residuals of all ranks; a codec without feedback does lose."""
    for one in (one for record in by_rank for one in record["exchanges"]):
        if one["codec"] in GRADIENTS_ONLY:
            assert one["lost"] <= 1e-5, one
        elif one["codec"] == "int8" and one["bucket"] == "mlp":
            assert one["lost"] > 1e-3


@pytest.mark.parametrize("codec", GRADIENTS_ONLY)
def test_training_with_feedback_ends_where_it_does_without_a_codec(by_rank: list[dict[str, Any]], codec: str) -> None:
    """Digits, two ranks: within 5 % of the uncompressed loss; without the residual at least a fifth worse."""
    losses = by_rank[0]["losses"]
    assert losses[codec] <= 1.05 * losses["none"]
    assert losses[f"{codec} without feedback"] >= 1.2 * losses["none"]


def parameters(of: Shapes) -> list[nn.Parameter]:
    """Zeros with these shapes."""
    return [nn.Parameter(torch.zeros(shape)) for shape in of]


def exchange_once(exchange: BucketExchange, step: int = 0) -> list[Tensor]:
    """One step in a group of one; returns the gradients that went in."""
    gone = [gradient(0, step, index, one.shape) for index, one in enumerate(exchange.parameters)]
    for one, value in zip(exchange.parameters, gone, strict=True):
        one.grad = value.clone()
    exchange.encode()
    exchange.issue()
    exchange.finish()
    return gone


@pytest.mark.parametrize("codec", sorted(CODECS))
@settings(max_examples=25, deadline=None)
@given(of=shapes)
def test_payloads_have_the_bytes_of_the_cost_model(codec: str, of: Shapes) -> None:
    """Of any tensors: odd sizes, single values, matrices that shrink and such that do not."""
    exchange = BucketExchange(codec, parameters(of), None, 1)
    raw = 4.0 * sum(one.numel() for one in exchange.parameters)
    matrices = [matrix for matrix in map(gradient_matrix, of) if matrix]
    assert sum(exchange.round_bytes) == payload_bytes(codec, raw, 4.0, matrices)


@pytest.mark.parametrize("codec", GRADIENTS_ONLY)
@settings(max_examples=25, deadline=None)
@given(of=shapes, steps=st.integers(1, 3))
def test_what_is_not_sent_is_kept(codec: str, of: Shapes, steps: int) -> None:
    """Decoded + residual = gradient + residual before, to 1e-6 of the values."""
    exchange = BucketExchange(codec, parameters(of), None, 1)
    for step in range(steps):
        before = [exchange.state_dict()[f"residual.{index}"].clone() for index in range(len(of))]
        gone = exchange_once(exchange, step)
        for index, (value, old) in enumerate(zip(gone, before, strict=True)):
            kept = exchange.state_dict()[f"residual.{index}"]
            torch.testing.assert_close(exchange.parameters[index].grad + kept, value + old, rtol=1e-5, atol=4e-6)


@given(count=st.integers(1, 2000), seed=st.integers(0, 50), equal=st.booleans())
def test_top_values_are_the_largest(count: int, seed: int, equal: bool) -> None:
    """Exactly the 1 % largest magnitudes, also among equals."""
    codec = TopCodec(parameters([(count,)]))
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    codec.parameters[0].grad = values.sign() if equal else values.clone()
    codec.pack()
    codec.add_up(codec.payloads)
    sent = codec.total[:count]
    assert int((sent != 0).sum()) == codec.kept == -(-count // 100)
    if not equal:
        expected = values.abs().topk(codec.kept).indices
        torch.testing.assert_close(sent[expected], values[expected])


def test_matrices_of_low_rank_arrive_whole() -> None:
    """The gradient of a matrix of rank 4 is its factors; vectors and small matrices are exact."""
    exchange = BucketExchange("low-rank", parameters([(60, 40), (40,), (3, 3)]), None, 1)
    # Well-conditioned factors: of nearly parallel columns fp32 leaves fewer digits.
    numbers = torch.Generator().manual_seed(0)
    thin = torch.randn(60, 4, generator=numbers) @ torch.randn(4, 40, generator=numbers)
    matrix, vector, small = exchange.parameters
    matrix.grad, vector.grad, small.grad = thin.clone(), torch.ones(40), torch.full((3, 3), 2.0)
    exchange.encode()
    exchange.issue()
    exchange.finish()
    torch.testing.assert_close(matrix.grad, thin, rtol=1e-4, atol=1e-4)
    assert torch.equal(vector.grad, torch.ones(40)) and torch.equal(small.grad, torch.full((3, 3), 2.0))


def test_low_rank_wakes_up_after_zeros() -> None:
    """A step without any gradient leaves Q zero; the next one must come through all the same."""
    exchange = BucketExchange("low-rank", parameters([(60, 40)]), None, 1)
    (matrix,) = exchange.parameters
    for _ in range(2):
        matrix.grad = None
        exchange.encode()
        exchange.issue()
        exchange.finish()
        assert not matrix.grad.any()
    for _ in range(60):
        matrix.grad = torch.ones(60, 40)
        exchange.encode()
        exchange.issue()
        exchange.finish()
    torch.testing.assert_close(matrix.grad, torch.ones(60, 40), rtol=1e-3, atol=1e-3)


def test_strips_make_the_same_product() -> None:
    """Matrices with aliased rows are cut into strips: two of 24 x 512, replaced and taken off."""
    p, q = torch.randn(2, 4, 24), torch.randn(2, 4, 512)
    result, rest = torch.full((2, 24, 512), float("nan")), torch.ones(2, 24, 512)
    add_product(result, p, q, keep=0, share=1)
    add_product(rest, p, q, keep=1, share=-1)
    torch.testing.assert_close(result, p.mT @ q)
    torch.testing.assert_close(rest, 1 - p.mT @ q)


def test_long_vector_is_a_square_and_a_rest() -> None:
    """A flattened tensor travels as factors of the largest square in it; what is left over is exact."""
    count = LONGEST_VECTOR + 50
    exchange = BucketExchange("low-rank", parameters([(count,)]), None, 1)
    (gone,) = exchange_once(exchange)
    side = 362
    assert gradient_matrix((count,)) == (side, side)
    assert sum(exchange.round_bytes) == 4 * (count - side * side + 4 * 2 * side)
    assert torch.equal(exchange.parameters[0].grad[side * side :], gone[side * side :])


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_missing_gradients_are_zeros(codec: str) -> None:
    """A parameter that took no part in the step gets a gradient of zeros where nothing was kept."""
    exchange = BucketExchange(codec, parameters([(12, 30), (300,)]), None, 1)
    exchange.parameters[0].grad = torch.ones(12, 30)
    exchange.encode()
    exchange.issue()
    exchange.finish()
    assert exchange.parameters[1].grad.shape == (300,)
    if codec != "one-bit":
        assert not exchange.parameters[1].grad.any()


@pytest.mark.parametrize("codec", ["none", "fp16", "bf16", "int8", "one-bit", "top-k"])
def test_not_a_number_is_never_hidden(codec: str) -> None:
    """A diverged run must be seen: NaN in goes out as NaN, and only where its block is."""
    exchange = BucketExchange(codec, parameters([(600,)]), None, 1)
    values = torch.randn(600)
    values[7] = float("nan")
    exchange.parameters[0].grad = values
    exchange.encode()
    exchange.issue()
    exchange.finish()
    result = exchange.parameters[0].grad
    assert result[7].isnan() and not result[256:].isnan().any()


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_half_precision_parameters_travel_in_two_bytes(codec: str) -> None:
    """bf16 parameters: payloads as the cost model says for 2-byte values, gradients in bf16, nothing else lost."""
    exchange = BucketExchange(codec, [nn.Parameter(torch.zeros(50, 40, dtype=torch.bfloat16))], None, 1)
    assert sum(exchange.round_bytes) == payload_bytes(codec, 4000.0, 2.0, [(50, 40)])
    value = gradient(0, 0, 0, (50, 40)).bfloat16()
    exchange.parameters[0].grad = value.clone()
    exchange.encode()
    exchange.issue()
    exchange.finish()
    result = exchange.parameters[0].grad
    assert result.dtype == torch.bfloat16
    kept = exchange.state_dict().get("residual.0", torch.zeros(()))
    torch.testing.assert_close(result.float() + kept, value.float(), rtol=0.02, atol=0.03)


def test_buffers_are_reused_and_nothing_is_copied_back() -> None:
    """Without a codec gradients are views of the buffer that was reduced, the same in every step."""
    exchange = BucketExchange("none", parameters([(4, 5), (6,)]), None, 1)
    exchange_once(exchange)
    first = [one.grad.data_ptr() for one in exchange.parameters]
    assert first[1] - first[0] == 4 * 20
    for one in exchange.parameters:
        one.grad = None
    exchange_once(exchange, 1)
    assert [one.grad.data_ptr() for one in exchange.parameters] == first


@pytest.mark.parametrize("codec", GRADIENTS_ONLY)
def test_state_survives_a_restart(codec: str) -> None:
    """An exchange that took up another's state goes on as that one does, to the last bit; one that did not, does not."""
    of = [(24, 16), (16,), (24, 16), (30, 30)]
    one, two, fresh = (BucketExchange(codec, parameters(of), None, 1) for _ in range(3))
    for step in range(2):
        exchange_once(one, step)
    two.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    for exchange in (one, two, fresh):
        exchange_once(exchange, 2)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(one.parameters, two.parameters, strict=True))
    assert not all(torch.equal(a.grad, b.grad) for a, b in zip(one.parameters, fresh.parameters, strict=True))


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_what_is_packed_apart_depends_on_nothing_else(codec: str) -> None:
    """Beside other parts of a weight, as lanes have them, the same values are lost of a whole one; the rest is kept as ever."""
    found = []
    for lane in range(2):
        of = [(40, 30), (300,), (40, 10), (7, 5)]
        of[0] = (40, 30 + lane)
        buckets = parameters(of)
        exchange = BucketExchange(codec, buckets, None, 1, apart=[buckets[1], buckets[3]])
        for step in range(3):
            before = {name: tensor.clone() for name, tensor in exchange.state_dict().items()}
            for index, one in enumerate(buckets):
                one.grad = gradient(lane if index in (0, 2) else 0, step, index, one.shape)
            given = [one.grad.clone() for one in buckets if one.grad is not None]
            exchange.encode()
            exchange.issue()
            exchange.finish()
        kept = exchange.state_dict()
        for index, (one, value) in enumerate(zip(buckets, given, strict=True)):
            assert one.grad is not None
            if f"residual.{index}" in kept:
                torch.testing.assert_close(one.grad + kept[f"residual.{index}"], value + before[f"residual.{index}"])
        found.append([buckets[index].grad for index in (1, 3)])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_foreign_state_is_refused_by_name() -> None:
    """State of other parameters or another codec names what does not fit."""
    exchange = BucketExchange("top-k", parameters([(4,)]), None, 1)
    with pytest.raises(RunError, match=r"residual\.0 do not fit"):
        exchange.load_state_dict({"residual.0": torch.zeros(5)})
    with pytest.raises(RunError, match=r"q\.0"):
        exchange.load_state_dict({"residual.0": torch.zeros(4), "q.0": torch.zeros(1)})


def test_empty_bucket_sends_nothing() -> None:
    """A bucket of frozen tasks has no parameters."""
    exchange = BucketExchange("int8", [], None, 2)
    exchange.encode()
    exchange.issue()
    exchange.wait()
    exchange.finish()
    assert exchange.wire_bytes == 0 and exchange.state_dict() == {}


def test_one_bucket_has_one_type() -> None:
    """Mixed types cannot lie in one buffer."""
    mixed = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]
    with pytest.raises(RunError, match=r"bfloat16, torch\.float32"):
        BucketExchange("none", mixed, None, 2)
