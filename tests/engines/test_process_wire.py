import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatfleet.engines import wire
from chatfleet.engines.base import (
    EngineConfig,
    EngineStats,
    Fault,
    GenerateRequest,
    SamplingParams,
    TokenDelta,
    TokenLogprobs,
)

bodies = st.lists(st.binary(max_size=300), max_size=12)


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@given(bodies=bodies, cuts=st.lists(st.integers(0, 5000), max_size=40))
def test_any_split_of_the_bytes_gives_the_same_frames(bodies: list[bytes], cuts: list[int]) -> None:
    decoder = wire.FrameDecoder()
    received = [bytes(body) for piece in pieces(b"".join(map(frame, bodies)), cuts) for body in decoder.feed(piece)]
    assert received == bodies


@given(bodies=bodies)
def test_single_bytes_give_the_same_frames(bodies: list[bytes]) -> None:
    decoder = wire.FrameDecoder()
    stream = b"".join(map(frame, bodies))
    assert [bytes(body) for byte in stream for body in decoder.feed(bytes([byte]))] == bodies


def test_a_body_stays_valid_while_later_bytes_come() -> None:
    decoder = wire.FrameDecoder()
    [body] = decoder.feed(frame(b"first") + frame(b"second")[:5])
    assert [bytes(later) for later in decoder.feed(frame(b"second")[5:])] == [b"second"]
    assert bytes(body) == b"first"


@pytest.mark.parametrize("split", [1, 2, 3, 4, 5])
def test_a_length_over_the_bound_is_refused_at_its_header(split: int) -> None:
    decoder = wire.FrameDecoder(max_frame_bytes=100)
    assert [bytes(body) for body in decoder.feed(frame(b"x" * 100))] == [b"x" * 100]
    data = frame(b"x" * 101)
    with pytest.raises(wire.FrameError, match="101 bytes"):
        decoder.feed(data[:split])
        decoder.feed(data[split:])


token_ids = st.lists(st.integers(0, 300_000), max_size=20)
deltas = st.builds(
    TokenDelta,
    request_id=st.integers(0, 2**40),
    token_ids=token_ids,
    logprobs=st.none()
    | st.lists(
        st.builds(
            TokenLogprobs,
            token_id=st.integers(0, 300_000),
            logprob=st.floats(-100, 0),
            top=st.lists(st.tuples(st.integers(0, 300_000), st.floats(-100, 0)), max_size=3),
        ),
        max_size=3,
    ),
    cached_tokens=st.none() | st.integers(0, 4096),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    fault=st.none() | st.builds(Fault, message=st.text(), param=st.none() | st.text()),
)
reports = st.builds(
    wire.StepReport,
    deltas=st.lists(deltas, max_size=8),
    embeddings=st.lists(
        st.builds(wire.Embedding, request_id=st.integers(0, 99), vector=st.none() | st.binary()), max_size=3
    ),
    stats=st.builds(EngineStats, running=st.integers(0, 99), kv_cache_usage=st.floats(0, 1)),
)


@given(report=reports)
def test_a_report_survives_the_pipe(report: wire.StepReport) -> None:
    [body] = wire.FrameDecoder().feed(wire.encode_frame(report))
    assert wire.decode_to_worker(body) == report


@given(prompts=st.lists(token_ids, min_size=1, max_size=20))
def test_commands_survive_the_pipe_in_order_and_in_one_frame(prompts: list[list[int]]) -> None:
    commands: list[wire.Command] = [
        wire.Add(
            GenerateRequest(
                request_id=index,
                prompt_token_ids=prompt,
                sampling=SamplingParams(max_tokens=5, logit_bias={7: -1.5}, stop_token_ids=(1, 2)),
            )
        )
        for index, prompt in enumerate(prompts)
    ]
    commands += [wire.Cancel(3), wire.Embed(4, [1]), wire.Ping(), wire.Shutdown()]
    [body] = wire.FrameDecoder().feed(wire.encode_commands([wire.encode_command(c) for c in commands]))
    batch = wire.decode_to_engine(body)
    assert isinstance(batch, wire.Commands)
    assert [wire.decode_command(raw) for raw in batch.commands] == commands


def test_a_load_survives_the_pipe() -> None:
    load = wire.Load("module:attribute", EngineConfig(engine="simulated", kv_cache_gb=1.5))
    [body] = wire.FrameDecoder().feed(wire.encode_frame(load))
    assert wire.decode_to_engine(body) == load


def test_a_batch_over_the_bound_is_cut_into_frames_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 200)
    commands: list[wire.Command] = [wire.Embed(index, [index] * 20) for index in range(50)]
    frames = wire.FrameDecoder(200).feed(wire.encode_commands([wire.encode_command(c) for c in commands]))
    assert len(frames) > 5
    received = [raw for body in frames for raw in msgspec.convert(wire.decode_to_engine(body), wire.Commands).commands]
    assert [wire.decode_command(raw) for raw in received] == commands


def test_a_report_over_the_bound_is_cut_and_a_delta_over_it_becomes_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 400)
    small = [TokenDelta(request_id=index, token_ids=[1]) for index in range(50)]
    huge = TokenDelta(request_id=99, token_ids=[1] * 1000)
    report = wire.StepReport([*small, huge], [wire.Embedding(5, b"1234")], EngineStats(steps=3))
    received = [wire.decode_to_worker(body) for body in wire.FrameDecoder(400).feed(wire.encode_frame(report))]
    parts = [part for part in received if isinstance(part, wire.StepReport)]
    deltas = [delta for part in parts for delta in part.deltas]
    assert deltas[:-1] == small
    assert deltas[-1].request_id == 99 and deltas[-1].fault is not None
    assert [embedding for part in parts for embedding in part.embeddings] == [wire.Embedding(5, b"1234")]


def test_one_command_over_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", 200)
    with pytest.raises(wire.FrameError, match="exceed the bound"):
        wire.encode_command(wire.Embed(1, [1] * 500))


def test_an_integer_over_64_bits_is_refused() -> None:
    sampling = SamplingParams(max_tokens=1, seed=2**70)
    with pytest.raises(wire.FrameError):
        wire.encode_command(wire.Add(GenerateRequest(request_id=1, prompt_token_ids=[1], sampling=sampling)))
