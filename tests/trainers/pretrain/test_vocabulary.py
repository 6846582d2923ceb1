from __future__ import annotations

from transformers import CLIPTokenizer

from trainers.pretrain.vocabulary import MAX_LENGTH, build_tokenizer, words, write_tokenizer


def test_every_word_of_the_world_is_one_token():
    tokenizer = build_tokenizer()
    assert [word for word in words() if len(tokenizer(word, add_special_tokens=False).input_ids) != 1] == []


def test_it_behaves_like_clips():
    tokenizer = build_tokenizer()
    ids = tokenizer("A Fox", padding="max_length").input_ids
    assert ids == tokenizer("a fox", padding="max_length").input_ids
    assert len(ids) == MAX_LENGTH
    assert ids[0] == tokenizer.bos_token_id and ids[3] == tokenizer.eos_token_id == max(ids)
    assert (
        tokenizer.decode(tokenizer("xylophone 狐", add_special_tokens=False).input_ids).replace(" ", "")
        == "xylophone狐"
    )


def test_it_survives_its_files(tmp_path):
    write_tokenizer(tmp_path)
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
    loaded, built = CLIPTokenizer.from_pretrained(tmp_path), build_tokenizer()
    text = "a sticker of a fox, xylophone"
    assert loaded(text).input_ids == built(text).input_ids
    assert loaded.model_max_length == MAX_LENGTH
