import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trainer.data.sources import split_fingerprint
from trainer.data.texts.tokenization import tokenize_split
from trainer.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat", "dog", "ran"]


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer():
    return word_tokenizer(WORDS)


def rows(texts, pairs=None):
    return datasets.Dataset.from_dict({"a": texts} | ({"b": pairs} if pairs else {}))


def buffers(cache) -> list[str]:
    return sorted(path.name for path in (cache / "tokens").iterdir() if path.is_dir())


def test_tokens_equal_those_of_the_tokenizer_called_by_hand(tokenizer):
    texts = ["the cat sat", "a dog", "the unseen word on the mat"]
    buffer = tokenize_split(rows(texts), ["a"], tokenizer, 32)
    expected = [[2, *(WORDS.index(w) if w in WORDS else 1 for w in text.split()), 3] for text in texts]
    found = [buffer.tokens[s:e].tolist() for s, e in zip(buffer.offsets, buffer.offsets[1:], strict=False)]
    assert found == expected
    assert buffer.pair_starts.tolist() == [len(ids) for ids in expected]


def test_pairs_start_where_the_second_text_does(tokenizer):
    buffer = tokenize_split(rows(["the cat", "a"], ["sat on", "dog ran on"]), ["a", "b"], tokenizer, 32)
    assert buffer.tokens.tolist() == [2, 4, 5, 3, 6, 7, 3, 2, 8, 3, 10, 11, 7, 3]
    assert buffer.pair_starts.tolist() == [4, 3]


def test_truncation_and_unknown_tokens_are_counted(tokenizer):
    texts = ["the cat sat on a mat", "the dog", "a mat on x mat"]
    buffer = tokenize_split(rows(texts), ["a"], tokenizer, 5)
    assert buffer.num_truncated == 2
    assert buffer.truncated_share == pytest.approx(2 / 3)
    assert buffer.lengths.tolist() == [5, 4, 5]
    assert buffer.num_unknown == 0
    whole = tokenize_split(rows(texts), ["a"], tokenizer, 8)
    assert (whole.num_truncated, whole.num_unknown) == (0, 1)
    assert whole.unknown_share == pytest.approx(1 / len(whole.tokens))


@pytest.mark.parametrize("max_length", [16, 64, 128, 200])
def test_texts_are_cut_at_the_length_that_is_asked_for(tokenizer, max_length):
    texts = [" ".join(["cat"] * count) for count in (max_length - 3, max_length - 2, max_length - 1, 500)]
    buffer = tokenize_split(rows(texts), ["a"], tokenizer, max_length)
    assert buffer.lengths.tolist() == [max_length - 1, max_length, max_length, max_length]
    assert buffer.num_truncated == 2


def test_tokenizes_once(tokenizer, tmp_path, monkeypatch):
    split = rows(["the cat"])
    tokenize_split(split, ["a"], tokenizer, 8)
    monkeypatch.setattr("trainer.data.texts.tokenization.encode_texts", None)
    assert tokenize_split(split, ["a"], tokenizer, 8).tokens.tolist() == [2, 4, 5, 3]
    assert len(buffers(tmp_path / "cache")) == 1


def test_texts_tokenizer_and_length_decide_the_key(tokenizer, tmp_path):
    tokenize_split(rows(["the cat"]), ["a"], tokenizer, 8)
    tokenize_split(rows(["the dog"]), ["a"], tokenizer, 8)
    tokenize_split(rows(["the cat"]), ["a"], word_tokenizer([*WORDS, "new"]), 8)
    tokenize_split(rows(["the cat"]), ["a"], tokenizer, 3)
    assert len(buffers(tmp_path / "cache")) == 4
    assert split_fingerprint(rows(["the cat"])) == split_fingerprint(rows(["the cat"]))


def test_a_cache_that_cannot_be_written_is_a_user_error(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="TRAINER_CACHE"):
        tokenize_split(rows(["the cat"]), ["a"], tokenizer, 8)
