"""Chains of stages: each held against its formula written out, against the literature's figures, and against noise."""

import math
import struct
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from midge.wire import codecs
from midge.wire.codecs import FALLBACK, Chain, NonFinite, decode_delta, encode_delta, followable, lossless, parse
from midge.wire.codecs.eden import LEVELS, hadamard
from midge.wire.codecs.sparse import encode_numbers, read_numbers
from midge.wire.codecs.stages import Chance, pack, unpack
from midge.wire.errors import WireError
from midge.wire.rice import BodyReader
from midge.wire.schema import Schema, Tensor
from tests import needs

Vector = npt.NDArray[np.float32]


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    """
    bf16 int4:16 int4:128 int4:128:random int8:64:random sign:1024 eden:1 eden:2 eden:4 eden:1:least
    eden:4:least topk:0.01|float32 topk:0.1|int8:256 topk:0.3|eden:2 stc:0.05 randk:0.25|eden:1
    randk:0.5|float32 uq:3|rice uq:0.05|rice uq:99|rice uq:3 uq:3|zstd int8:256|zstd float32|zstd
    topk:0.01|bf16|zstd
    """
)
SCHEMA = Schema(
    [
        Tensor("a", (20, 60), "float32", "trained"),
        Tensor("a.bias", (20,), "float32", "trained"),
        Tensor("mean", (7,), "float32", "averaged"),
        Tensor("none", (0, 3), "float32", "trained"),
        Tensor("b", (257,), "float32", "trained"),
        Tensor("b.bias", (), "float32", "trained"),
    ]
)
A, A_BIAS, MEAN, _, B, B_BIAS = (place for _, _, place in SCHEMA.shared)


def one(size: int) -> Schema:
    return Schema([Tensor("w", (size,), "float32", "trained")])


def there_and_back(vector: Vector, name: str, seed: int = 1) -> tuple[Vector, bytes]:
    schema = one(vector.size)
    body = encode_delta(vector, schema, name, seed=seed)
    return decode_delta(body, schema, name), body


def heavy(size: int, seed: int = 0) -> Vector:
    """Like a delta: most is small, some is large."""
    rng = np.random.default_rng(seed)
    return (rng.laplace(size=size) * np.abs(rng.normal(size=size)) * 1e-3).astype(np.float32)


def vnmse(vector: Vector, decoded: Vector) -> float:
    exact = vector.astype(np.float64)
    return float(np.sum((exact - decoded) ** 2) / np.sum(exact**2))


# -------------------------------------------------------- formulas, written out


@given(st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 40), max_size=700))
def test_numbers_come_back_as_a_reader_of_single_bits_reads_them(numbers: list[int]) -> None:
    numbers = [min(number, 2**20) for number in numbers]  # a large one among small ones takes as many bits as it says
    data = encode_numbers(np.array(numbers, np.int64))
    groups = -(-len(numbers) // 256)
    parameters, (length,) = data[:groups], struct.unpack_from("<I", data, groups)
    high = "".join(f"{byte:08b}" for byte in data[groups + 4 : groups + 4 + length])
    low = "".join(f"{byte:08b}" for byte in data[groups + 4 + length :])
    for index, number in enumerate(numbers):
        parameter = parameters[index // 256]
        ones, high = high.index("1"), high[high.index("1") + 1 :]
        rest, low = low[:parameter], low[parameter:]
        assert (ones << parameter) + int(rest or "0", 2) == number
    reader = BodyReader(memoryview(data))
    assert [number for some in read_numbers(reader, len(numbers)) for number in some.tolist()] == numbers
    reader.end()


@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_integers_of_few_bits(width: int, data: st.DataObject) -> None:
    integers = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    packed = pack(np.array(integers, np.uint8), width)
    assert int.from_bytes(packed, "little") == sum(value << (width * place) for place, value in enumerate(integers))
    assert unpack(BodyReader(memoryview(packed)), len(integers), width).tolist() == integers


def test_chance_is_the_same_for_ever() -> None:
    assert Chance(7, 0).words(3).tolist() == [703200164, 3745526968, 4175839367]
    assert "".join(map(str, Chance(2**64 - 1, 1).bits(16))) == "".join(map(str, Chance(-1, 1).bits(16)))
    assert Chance(7, 0).words(4).tolist() != Chance(7, 1).words(4).tolist()


def uniform_in_plain_python(values: list[float], k: float) -> list[float]:
    energy = sum(value * value for value in values)
    step = float(np.float32(k * math.sqrt(energy / len(values))))
    for _ in range(9):
        found = [round(value / step) * step if step else 0.0 for value in values]
        if sum((value - there) ** 2 for value, there in zip(values, found, strict=True)) <= 0.98 * energy:
            break
        step /= 2
    return found


@pytest.mark.parametrize("k", [0.5, 1, 3, 5, 8, 40])
@pytest.mark.parametrize("name", ["uq:{:g}|rice", "uq:{:g}"])
def test_uniform_steps_are_of_each_tensor(k: float, name: str) -> None:
    delta = np.zeros(SCHEMA.size, np.float32)
    delta[A], delta[B] = heavy(1200), 1000 * heavy(257, 1)
    decoded = decode_delta(encode_delta(delta, SCHEMA, name.format(k)), SCHEMA, name.format(k))
    for place in (A, B):
        np.testing.assert_allclose(decoded[place], uniform_in_plain_python(delta[place].tolist(), k), rtol=1e-6)


@pytest.mark.parametrize("k", [3, 8, 99])
def test_a_tensor_of_like_values_is_said_in_the_end(k: float) -> None:
    vector = np.where(np.arange(3000) % 2, np.float32(1e-3), np.float32(-1e-3)).astype(np.float32)
    carried, arrived = np.zeros_like(vector), np.zeros_like(vector)
    for _ in range(20):
        decoded = there_and_back(vector + carried, f"uq:{k:g}|rice")[0]
        carried, arrived = vector + carried - decoded, arrived + decoded
    assert np.abs(carried).max() < 20 * 1e-3 / 2, "error feedback piles up"
    assert np.abs(arrived).min() > 0


@pytest.mark.parametrize(("part", "k"), [(0.1, 60), (0.01, 6), (0.001, 1)])
def test_top_k_are_the_largest(part: float, k: int) -> None:
    vector = heavy(600)
    decoded = there_and_back(vector, f"topk:{part}|float32")[0]
    largest = sorted(range(600), key=lambda place: -abs(vector[place]))[:k]
    expected = [vector[place] if place in largest else 0 for place in range(600)]
    assert decoded.tolist() == expected


def test_stc_is_the_sign_times_the_mean_of_what_is_kept() -> None:
    vector = heavy(600)
    decoded = there_and_back(vector, "stc:0.05")[0]
    largest = sorted(range(600), key=lambda place: -abs(vector[place]))[:30]
    mean = sum(abs(float(vector[place])) for place in largest) / 30
    expected = [math.copysign(mean, vector[place]) if place in largest else 0 for place in range(600)]
    np.testing.assert_allclose(decoded, expected, rtol=1e-6)


def test_a_large_vector_has_its_threshold_from_a_sample() -> None:
    vector = heavy(2**19)
    decoded = there_and_back(vector, "topk:0.01|float32")[0]
    kept = np.flatnonzero(decoded)
    assert 0.8 * 0.01 * vector.size < kept.size < 1.2 * 0.01 * vector.size
    assert np.abs(np.delete(vector, kept)).max() <= np.abs(vector[kept]).min(), "they are the largest"
    alike = np.ones(2**19, np.float32)
    assert np.count_nonzero(there_and_back(alike, "topk:0.01|float32")[0]) == int(0.01 * 2**19)


def test_sign_is_times_the_mean_of_the_block() -> None:
    vector = heavy(300)
    decoded = there_and_back(vector, "sign:256")[0]
    for block in (slice(0, 256), slice(256, 300)):
        mean = np.abs(vector[block]).mean()
        np.testing.assert_allclose(decoded[block], np.where(vector[block] < 0, -mean, mean), rtol=1e-5)


@given(st.floats(-(2.0**120), 2.0**120, width=32))
def test_bfloat16_is_the_nearest(value: float) -> None:
    decoded = float(there_and_back(np.full(300, value, np.float32), "bf16")[0][0])
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    lower = struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]
    upper = struct.unpack("<f", struct.pack("<I", (bits & 0xFFFF0000) + 0x10000))[0]
    assert decoded in (lower, upper)
    assert abs(decoded - value) <= min(abs(lower - value), abs(upper - value))


@pytest.mark.parametrize("name", ["int4:16", "int4:100"])
def test_int4_is_the_nearest_of_fifteen(name: str) -> None:
    vector, block = heavy(410), int(name[5:])
    decoded = there_and_back(vector, name)[0]
    for start in range(0, 410, block):
        row = vector[start : start + block].astype(np.float64)
        scale = np.abs(row).max() / 7
        np.testing.assert_allclose(decoded[start : start + block], np.rint(row / scale) * scale, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["int4:128:random", "int8:64:random", "eden:1", "eden:2", "eden:4", "randk:0.2|int8:256"]
)
def test_what_has_chance_in_it_is_right_on_average(name: str) -> None:
    """With 200 seeds the mean's error is the single one's over √200, 7 %."""
    vector = heavy(1400)
    decoded = np.stack([there_and_back(vector, name, seed)[0] for seed in range(200)]).mean(axis=0)
    single = np.mean([vnmse(vector, there_and_back(vector, name, seed)[0]) for seed in range(20)])
    assert vnmse(vector, decoded) < 2 * single / 200 + 1e-6
    assert not parse(name).feedback


@pytest.mark.parametrize("name", ["eden:1", "eden:4", "int4:128:random", "randk:0.5|float32"])
def test_another_seed_is_other_chance(name: str) -> None:
    vector = heavy(1400)
    assert there_and_back(vector, name, 1)[1] == there_and_back(vector, name, 1)[1]
    assert there_and_back(vector, name, 1)[0].tolist() != there_and_back(vector, name, 2)[0].tolist()


# ------------------------------------------------------------------------ EDEN


def sylvester(width: int) -> npt.NDArray[np.float64]:
    matrix = np.ones((1, 1))
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@pytest.mark.parametrize("width", [1, 2, 8, 64, 1024])
def test_the_rotation_is_that_of_the_matrix(width: int) -> None:
    rows = np.random.default_rng(0).normal(size=(70, width)).astype(np.float32)
    before = rows.copy()
    np.testing.assert_allclose(hadamard(rows), rows @ sylvester(width), atol=1e-3)
    assert (rows == before).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("least", ["", ":least"])
@pytest.mark.parametrize("size", [1024, 1500, 300])
def test_eden_is_the_formula(bits: int, least: str, size: int) -> None:
    vector = heavy(size)
    decoded = there_and_back(vector, f"eden:{bits}{least}", seed=5)[0]
    signs = 1 - 2.0 * np.concatenate([Chance(5, 1).bits(1024)[:size], np.zeros(max(0, size - 1024))])
    if size > 1024:  # the second block's signs follow those of the first, and the block is of 512
        chance = Chance(5, 1)
        chance.bits(1024)
        signs[1024:] = 1 - 2.0 * chance.bits(512)[: size - 1024]
    levels = np.array([*(-level for level in reversed(LEVELS[bits])), *LEVELS[bits]])
    for start, width in ((0, min(1024, 1 << (size - 1).bit_length())), (1024, 512)):
        block = np.zeros(width)
        here = (vector * signs)[start : start + width]
        if not here.size:
            continue
        block[: here.size] = here
        H = sylvester(width) / math.sqrt(width)
        z = H @ block
        nearest = np.abs(z[:, None] * math.sqrt(width) / np.linalg.norm(z) - levels).argmin(axis=1)
        q = levels[nearest]
        scale = (q @ z) / (q @ q) if least else (z @ z) / (q @ z)
        expected = (scale * (H @ q))[: here.size] * signs[start : start + width]
        np.testing.assert_allclose(decoded[start : start + width], expected, atol=1e-4 * np.abs(expected).max())
        error = np.sum((block - scale * (H @ q)) ** 2) / (z @ z)
        identity = 1 - (q @ z) ** 2 / ((q @ q) * (z @ z)) if least else (z @ z) * (q @ q) / (q @ z) ** 2 - 1
        assert error == pytest.approx(identity)


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.36338), (2, 0.11748), (4, 0.00950)])
def test_eden_errs_as_lloyd_and_max_say(bits: int, distortion: float) -> None:
    normal = np.random.default_rng(3).normal(size=2**18).astype(np.float32)
    assert vnmse(normal, there_and_back(normal, f"eden:{bits}")[0]) == pytest.approx(
        distortion / (1 - distortion), rel=0.02
    )
    assert vnmse(normal, there_and_back(normal, f"eden:{bits}:least")[0]) == pytest.approx(distortion, rel=0.02)
    for other in (heavy(2**16), np.where(np.arange(2**16) % 20, np.float32(0), normal[: 2**16])):
        found = vnmse(other, there_and_back(other, f"eden:{bits}")[0])
        assert 0.90 < found / (distortion / (1 - distortion)) < 1.03


@pytest.mark.parametrize(("part", "bits"), [(0.01, 8.11), (0.05, 5.86)])
def test_places_cost_what_golomb_says(part: float, bits: float) -> None:
    """b_pos = b* + 1 / (1 − (1 − p)^(2^b*)), b* = 1 + ⌊log₂(ln(φ − 1) / ln(1 − p))⌋ (Sattler et al., 2019)."""
    best = 1 + math.floor(math.log2(math.log((math.sqrt(5) - 1) / 2) / math.log(1 - part)))
    assert bits == pytest.approx(best + 1 / (1 - (1 - part) ** 2**best), abs=0.3)
    vector = np.random.default_rng(0).normal(size=2**18).astype(np.float32)
    _, body = there_and_back(vector, f"stc:{part}")
    kept = int(part * 2**18)
    assert 8 * len(body) / kept == pytest.approx(1 + best + 1 / (1 - (1 - part) ** 2**best), rel=0.02)


@pytest.mark.parametrize(("name", "ratio"), [("uq:3|rice", 40), ("uq:5|rice", 95), ("stc:0.05", 85), ("eden:1", 30)])
def test_a_delta_becomes_so_much_smaller(name: str, ratio: float) -> None:
    vector = heavy(2**17)
    assert 4 * vector.size / len(there_and_back(vector, name)[1]) > ratio


# ------------------------------------------------------------- bodies of updates

DELTAS = st.integers(0, 2**32).map(
    lambda seed: (np.random.default_rng(seed).standard_t(2, SCHEMA.size) * 10.0 ** (seed % 60 - 30)).astype(np.float32)
)


@given(DELTAS, st.sampled_from(NAMES), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_small_tensors_are_fine_and_averaged_ones_exact(delta: Vector, name: str, seed: int) -> None:
    body = encode_delta(delta, SCHEMA, name, seed=seed)
    decoded = decode_delta(memoryview(body), SCHEMA, name)
    assert decoded.flags.writeable
    assert len(body) <= 4 * SCHEMA.size + 4
    assert decoded[MEAN].tobytes() == delta[MEAN].tobytes()
    for place in (A_BIAS, B_BIAS):
        limit = np.abs(delta[place]).max() / 250 + 1e-35
        assert np.abs(decoded[place] - delta[place]).max() <= limit
    assert decode_delta(body, SCHEMA, name).tobytes() == decoded.tobytes()
    for wrong in (body + b"\0", body[:-1], b"\2" + body[1:]):
        with pytest.raises(WireError):
            decode_delta(wrong, SCHEMA, name)


@given(DELTAS, st.sampled_from(NAMES), st.sets(st.sampled_from([0, 1, 2, 4, 5])).map(lambda some: tuple(sorted(some))))
@settings(deadline=None)
def test_a_part_of_the_tensors(delta: Vector, name: str, tensors: tuple[int, ...]) -> None:
    decoded = decode_delta(encode_delta(delta, SCHEMA, name, tensors), SCHEMA, name, tensors)
    covered = np.zeros(SCHEMA.size, np.bool_)
    for place in SCHEMA.covered(tensors):
        covered[place] = True
    assert not decoded[~covered].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1200, 1221, 1300, SCHEMA.size - 1])
def test_what_is_not_finite_is_refused(name: str, bad: float, place: int) -> None:
    delta = heavy(SCHEMA.size)
    delta[place] = bad
    with pytest.raises(NonFinite):
        decode_delta(encode_delta(delta, SCHEMA, name), SCHEMA, name)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_what_is_tiny_or_huge(name: str) -> None:
    for value in (0.0, 1e-45, 1e-38, 1e-30, 1e30):
        decoded, _ = there_and_back(np.full(1500, value, np.float32), name)
        assert np.isfinite(decoded).all()
        if value in (0.0, 1e-45):
            assert np.abs(decoded).max() <= 1e-37
    assert encode_delta(np.empty(0, np.float32), one(0), name) == b"\0"
    assert decode_delta(b"\0", one(0), name).size == 0


# ------------------------------------------------------------------ hostile bytes


def survives(body: bytes, name: str) -> None:
    try:
        decoded = decode_delta(body, SCHEMA, name)
    except WireError:
        return
    assert decoded.shape == (SCHEMA.size,)
    assert np.isfinite(decoded).all()


@given(st.sampled_from(NAMES), st.binary(max_size=400), st.binary(min_size=28, max_size=28))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_delta_or_refused(name: str, data: bytes, fine: bytes) -> None:
    survives(data, name)
    survives(b"\1" + data + fine, name)
    if lossless.available() and name.endswith("zstd"):
        survives(b"\1" + lossless.compress(data) + fine, name)


@given(st.sampled_from(NAMES), st.integers(0, 9), st.data())
@settings(deadline=None, max_examples=300)
def test_a_delta_with_bytes_changed_is_a_delta_or_refused(name: str, seed: int, data: st.DataObject) -> None:
    body = bytearray(encode_delta(heavy(SCHEMA.size, seed), SCHEMA, name, seed=seed))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from([0, 1, 30, 31, 127, 128, 255]))
    start = data.draw(st.integers(0, len(body)))
    survives(bytes(body[:start] + body[start + data.draw(st.sampled_from([0, 0, 1, 4])) :]), name)


@pytest.mark.parametrize("name", NAMES)
def test_no_bytes_take_memory(name: str) -> None:
    """What a decoder makes room for is some times the vector and the bytes; the claims are of gigabytes."""
    body = bytearray(encode_delta(heavy(SCHEMA.size), SCHEMA, name))
    tracemalloc.start()
    try:
        for start in range(1, len(body) - 4, 3):
            evil = bytes(body[:start] + b"\xff\xff\xff\x7f" + body[start + 4 :])
            survives(evil, name)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
    finally:
        tracemalloc.stop()


def frames() -> dict[str, bytes]:
    import zstandard

    compressor = zstandard.ZstdCompressor
    undeclared = compressor(write_content_size=False).compress(b"\0" * 9000)
    declared = compressor().compress(b"\0" * 2**26)
    huge = bytearray(compressor().compress(b"\0" * 9000))
    return {
        "a bomb": declared,
        "undeclared": undeclared,
        "cut": bytes(huge[:-3]),
        "two": compressor().compress(b"\0" * 100) * 2,
        "skippable": struct.pack("<II", 0x184D2A50, 4) + b"abcd",
        "a wide window": zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
        ).compress(b"\0" * 2**26),
    }


@needs.zstandard
@pytest.mark.parametrize("kind", ["a bomb", "undeclared", "cut", "two", "skippable", "a wide window"])
def test_a_hostile_zstandard_frame_is_refused_before_it_unfolds(kind: str) -> None:
    data = frames()[kind]
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=r"compressed delta|Zstandard"):
            lossless.decompress(data, 10_000)
        with pytest.raises(WireError):
            decode_delta(b"\1" + data + bytes(28), SCHEMA, "uq:3|zstd")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert lossless.decompress(lossless.compress(b"x" * 9000), 9000) == b"x" * 9000
    with pytest.raises(WireError):
        lossless.decompress(lossless.compress(b"x" * 9000), 8999)


# ------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_parsed_once(name: str) -> None:
    assert isinstance(parse(name), Chain)
    assert parse(name) is parse(name)


def test_who_keeps_a_residual() -> None:
    for name in ("uq:3|rice", "uq:5|zstd", "topk:0.01|int8:256", "stc:0.05", "sign:1024", "eden:1:least", "int4:128"):
        assert parse(name).feedback, name
    for name in ("float32", "bf16", "int8:256", "eden:1", "randk:0.1|sign:64", "int4:128:random", "int8:256|zstd"):
        assert not parse(name).feedback, name


BAD = _words(
    """
    uq uq: uq:0 uq:-1 uq:nan uq:1e3 uq:100 uq:3|rice|rice rice zstd zstd|zstd float32|zstd|zstd uq:3|rice|int8
    topk topk:0 topk:0.0 topk:1 topk:1.0 topk:.1 topk:0.1 topk:0.1| |topk topk:0.1|topk:0.1|int8
    topk:0.000001|int8 randk:0.1 eden eden:3 eden:8 eden:1:most eden:1: int4 int4:8 int4:128:stochastic
    int4:128: sign sign:0 stc stc:2 bf16:1 int8:256:Random topk:0.1|uq:3|rice stc:0.1|int8 uq:3||rice uq:٣|rice
    UQ:3|rice
    """
)


@pytest.mark.parametrize("name", [*BAD, "topk:0.1|" * 20 + "int8"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(WireError, match="unknown codec"):
        parse(name)


@given(st.lists(st.sampled_from(["uq:3", "rice", "zstd", "topk:0.1", "randk:0.5", "int8", "eden:1", "float32", ""])))
@example(["zstd"] * 30)
def test_any_chain_of_stages_is_a_codec_or_refused(stages: list[str]) -> None:
    try:
        parse("|".join(stages))
    except WireError:
        return
    survives(b"\1" + b"\xff" * 99, "|".join(stages))


def test_a_device_without_zstandard_does_without() -> None:
    for asked, done in (
        ("uq:3|zstd", "uq:3|rice"),
        ("uq:3|rice|zstd", "uq:3|rice"),
        ("int8:256|zstd", "int8:256"),
        ("uq:3|rice", "uq:3|rice"),
        ("wavelet:9", FALLBACK),
    ):
        assert followable(asked, lambda: False) == done
        assert followable(asked, lambda: True) == (FALLBACK if "wavelet" in asked else asked)
    assert isinstance(parse(FALLBACK), codecs.Int8)


def test_without_zstandard_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lossless, "_module", lambda: None)
    with pytest.raises(WireError, match=r"midge\[zstd\]"):
        encode_delta(heavy(SCHEMA.size), SCHEMA, "uq:3|zstd")
    with pytest.raises(WireError, match=r"midge\[zstd\]"):
        decode_delta(b"\1" + bytes(40), SCHEMA, "uq:3|zstd")
