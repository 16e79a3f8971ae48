import numpy as np
import pytest

from trainer.data.texts.buffer import EncodedTexts, TokenBuffer, TokenSet, write_tokens

PAD = 9


def random_texts(num_texts: int, largest: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(10, largest, rng.integers(1, 30)).tolist() for _ in range(num_texts)]


def encoded(texts: list[list[int]], num_truncated: int = 0) -> EncodedTexts:
    return EncodedTexts(texts, [len(ids) // 2 + 1 for ids in texts], num_truncated)


@pytest.fixture
def texts() -> list[list[int]]:
    return random_texts(100, 30_000)


@pytest.fixture
def buffer(texts, tmp_path) -> TokenBuffer:
    write_tokens(tmp_path, [encoded(texts[:60], 2), encoded(texts[60:], 1)], vocab_size=30_000)
    return TokenBuffer.open(tmp_path)


def token_set(buffer: TokenBuffer, **options) -> TokenSet:
    return TokenSet(buffer, np.arange(len(buffer)), PAD, max_length=30, **options)


def test_a_buffer_reads_what_was_written(buffer, texts):
    assert len(buffer) == 100
    assert buffer.num_truncated == 3
    for row, ids in enumerate(texts):
        assert buffer.tokens[buffer.offsets[row] : buffer.offsets[row + 1]].tolist() == ids
    assert buffer.lengths.tolist() == [len(ids) for ids in texts]
    assert isinstance(buffer.tokens, np.memmap)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, np.uint16), (65_537, np.int32)])
def test_largest_token_fits_the_type_on_disk(tmp_path, vocab_size, dtype):
    write_tokens(tmp_path, [EncodedTexts([[0, vocab_size - 1]], [2], 0)], vocab_size)
    buffer = TokenBuffer.open(tmp_path)
    assert buffer.tokens.dtype == dtype
    assert buffer.tokens.tolist() == [0, vocab_size - 1]


def test_buffer_in_memory_is_the_same(buffer, texts):
    other = TokenBuffer.from_chunks([encoded(texts[:60], 2), encoded(texts[60:], 1)])
    np.testing.assert_array_equal(other.tokens, buffer.tokens)
    np.testing.assert_array_equal(other.offsets, buffer.offsets)
    np.testing.assert_array_equal(other.pair_starts, buffer.pair_starts)
    assert other.num_truncated == buffer.num_truncated


def test_gather_equals_padding_row_by_row(buffer, texts):
    indices = np.array([99, 0, 17, 17, 42])
    batch = token_set(buffer).gather(indices, num_valid=4, epoch=7)
    width = max(len(texts[i]) for i in indices)
    expected = [texts[i] + [PAD] * (width - len(texts[i])) for i in indices]
    assert batch.input_ids.tolist() == expected
    assert batch.lengths.tolist() == [len(texts[i]) for i in indices]
    assert batch.labels.tolist() == batch.indices.tolist() == indices.tolist()
    assert (batch.num_valid, batch.epoch) == (4, 7)


def test_masks_follow_from_lengths(buffer, texts):
    indices = np.arange(20)
    batch = token_set(buffer).gather(indices, 20, 0)
    mask, types = batch.attention_mask(), batch.token_type_ids()
    assert mask is not None
    for row, i in enumerate(indices):
        length, start = len(texts[i]), len(texts[i]) // 2 + 1
        rest = batch.input_ids.shape[1] - length
        assert mask[row].tolist() == [1] * length + [0] * rest
        assert types[row].tolist() == ([0] * start + [1] * (length - start))[:length] + [0] * rest


def test_no_mask_where_nothing_is_padded(buffer, texts):
    same = [i for i, ids in enumerate(texts) if len(ids) == len(texts[0])]
    assert token_set(buffer).gather(np.array(same), len(same), 0).attention_mask() is None


def test_width_is_rounded_up_but_not_beyond_the_longest_allowed(buffer, texts):
    longest = int(np.argmax(buffer.lengths))
    for row in (longest, int(np.argmin(buffer.lengths))):
        width = token_set(buffer, pad_to_multiple_of=8).gather(np.array([row]), 1, 0).input_ids.shape[1]
        assert width == max(len(texts[row]), min(-(-len(texts[row]) // 8) * 8, 30))
    assert token_set(buffer, width=40).gather(np.array([0]), 1, 0).input_ids.shape[1] == 40
