"""The tokenizer against the original release: stored results, and a port on everything else."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import random
import subprocess
import sys
import unicodedata

import numpy as np
import original_tokenization as original
import pytest
import tensorflow as tf

from bert_tf import unicode_table
from bert_tf.text_normalization import stored_tables
from bert_tf.tokenization import Tokenizer, in_chunks, read_vocab, traced

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "tokenization"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MODES = [(True, True), (False, False), (True, False), (False, True)]  # lower_case, strip_accents
CONTEXTS = ["{}", "ab{}cd", "ab {} cd"]

# What has gone wrong in tokenizers: letters, accents apart and combined, marks that NFD reorders,
# final sigma and its neighbours, Hangul, CJK, invisible and unassigned characters, all spaces.
NASTY = (
    "aAbBzZ09 \t\n\r.,'-_$^`~#[]Σσς\u0391\u03b1\u0301\u0300\u0327éÉÀçßẞİI\u0131Őǅﬁ²½…™“”—«»¿§©"
    "\u302e\u302f\U0001d165\U0001d166\U0001d16e\U0001d15e\U00016ff0\u094d\u034f\u0345\u1b44\u1b0d"
    "가각힣\u1100\u1161\u11a8中文、。\uf900\ufadb\U0002f800\U0002a6df\u3007日かカﾊﾞ한"
    "\x00\x01\x0b\x1c\x7f\x85\xa0\xad\u1680\u180e\u200b\u200d\u2028\u2029\u202f\u205f\u3000\ufeff\ufffd"
    "\ue000\ufdd0\uffff\U0001fa77\U00011b00\U0010ffff😀\u2260\u226e\u037e\u1fef\u00b7\u0387:"
)


def vocab_file(folder: pathlib.Path, pieces: list[str]) -> str:
    path = folder / "vocab.txt"
    path.write_bytes("".join(piece + "\n" for piece in pieces).encode())
    return str(path)


def pieces_for(characters: str) -> list[str]:
    """A vocabulary that tells all results apart: each character as a word and inside one."""
    produced = set("abcd" + characters + characters.lower())
    produced |= set(unicodedata.normalize("NFD", "".join(produced)))
    produced |= set(unicodedata.normalize("NFD", characters.lower()))
    produced = {c for c in produced if c.strip() and not 0xD800 <= ord(c) <= 0xDFFF}
    return SPECIAL + [prefix + c for c in sorted(produced) for prefix in ("", "##")]


def ids_of(tokenizer: Tokenizer) -> dict[str, int]:
    return {piece: piece_id for piece_id, piece in enumerate(tokenizer.vocab)}


def differences(tokenizer: Tokenizer, texts: list[bytes]) -> list[tuple[bytes, list[int]]]:
    """Texts that the tokenizer and the original disagree about."""
    ids, mode = ids_of(tokenizer), (tokenizer.lower_case, tokenizer.strip_accents)
    results = tokenizer(tf.constant(texts, tf.string)).to_list()
    return [
        (text, result)
        for text, result in zip(texts, results, strict=True)
        if result != original.tokenize(text, ids, *mode)
    ]


def nasty_texts(count: int, seed: int) -> list[bytes]:
    """Random strings of nasty characters, one in four with bytes that are not UTF-8."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        alphabet = rng.choice(
            [NASTY, rng.sample(NASTY, 8), "Σα'. \u0301ab", "".join(map(chr, range(128)))]
        )
        text = bytearray("".join(rng.choices(alphabet, k=rng.randint(0, 24))).encode())
        if number % 4 == 0:
            for _ in range(rng.randint(1, 4)):
                place = rng.randint(0, len(text))
                if rng.random() < 0.5:
                    text.insert(
                        place, rng.choice(b"\x80\xbf\xc0\xc1\xc3\xe2\xed\xa0\xf0\x90\xf4\xf5\xff")
                    )
                else:
                    del text[place : place + 1]
        texts.append(bytes(text))
    return texts


@pytest.fixture(scope="module")
def nasty_tokenizers(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[bool, bool], Tokenizer]:
    path = vocab_file(tmp_path_factory.mktemp("nasty"), [*pieces_for(NASTY), "ab", "##cd", "don"])
    return {mode: Tokenizer(path, *mode) for mode in MODES}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(str(GOLDENS / "uncased.txt"))


@pytest.mark.parametrize("name", ["uncased", "cased"])
def test_results_of_the_original_release(name: str) -> None:
    rows = [json.loads(line) for line in (GOLDENS / "goldens.jsonl").read_text().splitlines()]
    tokenizer = Tokenizer(str(GOLDENS / f"{name}.txt"), lower_case=name == "uncased")
    texts = [row["text"].encode() for row in rows]
    assert len(texts) > 600
    for row, ids in zip(rows, tokenizer(tf.constant(texts)).to_list(), strict=True):
        assert " ".join(tokenizer.tokens(ids)) == row[name], row["text"]
    assert not differences(tokenizer, texts)  # the port that the other tests use is faithful


@pytest.mark.parametrize("mode", MODES)
def test_random_nasty_texts(
    nasty_tokenizers: dict[tuple[bool, bool], Tokenizer], mode: tuple[bool, bool]
) -> None:
    assert not differences(nasty_tokenizers[mode], nasty_texts(3000, seed=1))


@pytest.mark.parametrize("mode", MODES)
def test_both_ways_of_tokenizing_agree(
    nasty_tokenizers: dict[tuple[bool, bool], Tokenizer], mode: tuple[bool, bool]
) -> None:
    """A text must not depend on which others are in the batch: alone it may go the short way."""
    tokenizer = nasty_tokenizers[mode]
    texts = tf.constant(nasty_texts(1500, seed=2))
    general = tokenizer._match_normalized(texts, offsets=True)
    unchanged = tokenizer._normalizer.is_unchanged(texts)
    assert 100 < tf.math.count_nonzero(unchanged) < 1400
    short = tokenizer._match_unchanged(tf.boolean_mask(texts, unchanged), offsets=True)
    assert short.to_list() == tf.ragged.boolean_mask(general, unchanged).to_list()


@pytest.mark.parametrize("mode", MODES)
def test_offsets(
    nasty_tokenizers: dict[tuple[bool, bool], Tokenizer], mode: tuple[bool, bool]
) -> None:
    tokenizer = nasty_tokenizers[mode]
    ids = ids_of(tokenizer)
    texts = [*nasty_texts(1500, seed=3), b"a" * 201, "é".encode() * 201, b"abcd x\xffyz"]
    result = tokenizer(tf.constant(texts), offsets=True)
    rows = [part.to_list() for part in result]
    for text, token_ids, *positions in zip(texts, *rows, strict=True):
        assert token_ids == original.tokenize(text, ids, *mode)
        assert list(zip(*positions, strict=True)) == original.spans(text, ids, *mode), text


def test_offsets_by_hand(tokenizer: Tokenizer) -> None:
    text = "\x00Caf\u00e9 \ud55c!".encode()
    result = tokenizer(tf.constant([text, b"\xff\xe2 a b\x80 "]), offsets=True)
    assert result.token_ids.dtype == tf.int32
    assert result.byte_start.to_list()[1] == [3, 5]
    assert result.byte_end.to_list()[1] == [4, 6]
    assert result.char_start.to_list()[1] == [1, 3]
    spans = list(zip(result.byte_start.to_list()[0], result.byte_end.to_list()[0], strict=True))
    assert text[spans[0][0] :].startswith(b"Caf")
    assert [text[start:end].decode() for start, end in spans][-1] == "!"
    assert result.char_end.to_list()[0][-1] == 8


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("characters", ["a", "é", "中a", "\U0001d400", "한", "\u0e01", "a\u0301"])
def test_words_of_about_200_characters(
    nasty_tokenizers: dict[tuple[bool, bool], Tokenizer], characters: str, mode: tuple[bool, bool]
) -> None:
    """The limit counts characters after normalisation, of what punctuation leaves."""
    texts = []
    for length in (66, 67, 99, 100, 101, 199, 200, 201, 400, 401, 900):
        word = (characters * length)[:length]
        texts += [word, f"a {word} b", f"a-{word}.{word}b", f"\u2014{word}\u2014x", word + "\x00"]
    assert not differences(nasty_tokenizers[mode], [text.encode() for text in texts])


@pytest.mark.parametrize("mode", MODES)
def test_every_interesting_code_point(tmp_path: pathlib.Path, mode: tuple[bool, bool]) -> None:
    """Most that are changed or dropped, both ends of each stretch of a kind, and samples."""
    kinds = [kind_of(chr(code)) for code in range(0x110000)]
    codes = [
        code
        for code in range(0x110000)
        if (code < 0x3000 and code % 2)
        or code % 1009 == 0
        or kinds[code] not in (kinds[code - 1], kinds[(code + 1) % 0x110000])
        or (kinds[code][2:] != (False, False) and not 0xAC00 <= code <= 0xD7A3 and code % 3)
    ]
    characters = "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)
    assert len(characters) > 8000
    check_code_points(tmp_path, characters, mode)


def kind_of(character: str) -> tuple[str, int, bool, bool]:
    return (
        unicodedata.category(character),
        unicodedata.combining(character),
        character.lower() != character,
        unicodedata.decomposition(character)[:1] not in ("", "<"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plane", range(17))
def test_every_code_point(tmp_path: pathlib.Path, plane: int, mode: tuple[bool, bool]) -> None:
    codes = range(plane << 16, (plane + 1) << 16)
    characters = "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)
    check_code_points(tmp_path, characters, mode)


def check_code_points(folder: pathlib.Path, characters: str, mode: tuple[bool, bool]) -> None:
    tokenizer = Tokenizer(vocab_file(folder, pieces_for(characters)), *mode)
    for context in CONTEXTS:
        assert not differences(tokenizer, [context.format(c).encode() for c in characters])


def test_ascii_pairs(nasty_tokenizers: dict[tuple[bool, bool], Tokenizer]) -> None:
    """Every two ASCII characters beside each other, controls and all."""
    texts = [bytes([97, first, second, 98]) for first in range(128) for second in range(128)]
    assert not differences(nasty_tokenizers[True, True], texts)
    assert not differences(nasty_tokenizers[False, False], texts)


def test_final_sigma(nasty_tokenizers: dict[tuple[bool, bool], Tokenizer]) -> None:
    neighbours = ["", "\u0391", "\u03b1'", "\u0301", ".", " ", "中", "\x01", "ʰ", "1", "Σ", "-"]
    texts = [
        f"{a}{b}Σ{c}{d}"
        for a in neighbours
        for b in neighbours
        for c in neighbours
        for d in "αΣ 中"
    ]
    encoded = [text.encode() for text in texts]
    assert not differences(nasty_tokenizers[True, True], encoded)
    assert not differences(nasty_tokenizers[True, False], encoded)


def test_invalid_utf8_vanishes_as_in_python() -> None:
    decode = Tokenizer(str(GOLDENS / "uncased.txt"))._normalizer.decode
    lead = [
        0x41,
        0x7F,
        0x80,
        0x90,
        0x9F,
        0xA0,
        0xBF,
        0xC0,
        0xC2,
        0xE0,
        0xE2,
        0xED,
        0xEF,
        0xF0,
        0xF4,
        0xF5,
        0xFF,
    ]
    texts = [bytes([a, b, c, d]) for a in lead for b in lead for c in lead for d in lead]
    decoded = decode(tf.constant(texts))
    rows = tf.RaggedTensor.from_row_splits(decoded.code_points, decoded.row_splits).to_list()
    starts = tf.RaggedTensor.from_row_splits(decoded.byte_start, decoded.row_splits).to_list()
    for text, codes, places in zip(texts, rows, starts, strict=True):
        characters, byte_starts = original.decode_with_places(text)
        assert characters == text.decode("utf-8", "ignore")
        assert ("".join(map(chr, codes)), places) == (characters, byte_starts), text


def test_vocabularies_with_odd_lines(tmp_path: pathlib.Path) -> None:
    odd = [
        "",
        "",
        "##",
        "\x00",
        "\x01",
        "\x11",
        "##\x11",
        "a\x11",
        "\x7f",
        "a b",
        "don't",
        "##'t",
        "[X]",
        "...",
        "##!",
        "!",
        "é",
        "\U0001fa77",
    ]
    odd += [
        "##\U0001fa77",
        "\U00011b00",
        "x\U00011b00",
        "##\ufdd0",
        "\u2028",
        "中",
        "##文",
        "中文",
        "ABC",
    ]
    odd += [*"abdonxtX", *(f"##{c}" for c in "abdonxtX"), "##\U00011b00"]
    path = vocab_file(tmp_path, SPECIAL + odd)
    texts = [
        "don't a b ab ... ! x! [X] [MASK] ##! ##",
        "é e\u0301 \U0001fa77 a\U0001fa77b",
        "中文 a中文b",
    ]
    texts += [
        "x\U00011b00b \U00011b00 a\U00011b00 a\U00011b01",
        "\ufdd0 a\ufdd0 \U00040001 \U00040000 ABC",
    ]
    for lower_case in (True, False):
        tokenizer = Tokenizer(path, lower_case)
        assert tokenizer.vocab_size == len(SPECIAL) + len(odd)
        assert not differences(tokenizer, [text.encode() for text in texts])


@pytest.mark.parametrize("batch", [[], [b""], [b"", b" ", b"\x00", b"\xff"], [b"", b"a", b""]])
def test_nothing_to_tokenize(tokenizer: Tokenizer, batch: list[bytes]) -> None:
    texts = tf.constant(batch, tf.string)
    expected = [[tokenizer.vocab.index("a")] if text == b"a" else [] for text in batch]
    assert tokenizer(texts).to_list() == expected
    assert tokenizer(texts, offsets=True).token_ids.to_list() == expected


def test_wrong_rank(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"rank 1.*list"):
        tokenizer(tf.constant("one text"))


@pytest.mark.parametrize("limit", [3, 4, 9, 40])
def test_pack_truncates_like_the_original(tokenizer: Tokenizer, limit: int) -> None:
    lengths = [(a, b) for a in range(13) for b in range(13)]
    rows_a = [list(range(100, 100 + a)) for a, _ in lengths]
    rows_b = [list(range(200, 200 + b)) for _, b in lengths]
    a = tf.ragged.constant(rows_a, tf.int32, row_splits_dtype=tf.int64)
    b = tf.ragged.constant(rows_b, tf.int32, row_splits_dtype=tf.int64)
    cls_id, sep_id = tokenizer.cls_id, tokenizer.sep_id
    pairs, singles = tokenizer.pack(a, b, limit), tokenizer.pack(a, max_seq_length=limit)
    single_ids, single_segments = singles.token_ids.to_list(), singles.segment_ids.to_list()
    pair_ids, pair_segments = pairs.token_ids.to_list(), pairs.segment_ids.to_list()
    for number, (first, second) in enumerate(zip(rows_a, rows_b, strict=True)):
        single = [cls_id, *first[: limit - 2], sep_id]
        assert single_ids[number] == single
        assert single_segments[number] == [0] * len(single)
        if second:
            original.truncate_pair(first, second, limit - 3)
            ids = [cls_id, *first, sep_id, *second, sep_id]
            segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        else:  # run_classifier.py: `if tokens_b:`
            ids, segments = single, [0] * len(single)
        assert pair_ids[number] == ids
        assert pair_segments[number] == segments


def test_pack_without_room(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"max_seq_length=2 has no room.*at least 3"):
        tokenizer.pack(tokenizer(tf.constant(["a"])), max_seq_length=2)


def test_special_ids_tokens_and_decode(tokenizer: Tokenizer) -> None:
    special = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id]
    assert tokenizer.tokens([*special, tokenizer.mask_id]) == SPECIAL
    ids = tokenizer(tf.constant(["STRASSE caf\u00e9"])).to_list()[0]
    assert tokenizer.tokens(ids) == ["st", "##ras", "##se", "cafe"]
    assert tokenizer.decode(ids) == "strasse cafe"
    # As in the original release, special pieces in the text are text.
    assert tokenizer.mask_id not in tokenizer(tf.constant(["[MASK]"])).to_list()[0]


def test_save_and_load(tokenizer: Tokenizer, tmp_path: pathlib.Path) -> None:
    cased = Tokenizer(str(GOLDENS / "cased.txt"), lower_case=False, strip_accents=True)
    for number, one in enumerate((tokenizer, cased)):
        folder = tmp_path / str(number)
        one.save(str(folder))
        assert sorted(os.listdir(folder)) == ["tokenizer_config.json", "vocab.txt"]
        two = Tokenizer.load(str(folder))
        assert (two.vocab, two.lower_case, two.strip_accents) == (
            one.vocab,
            one.lower_case,
            one.strip_accents,
        )
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert config == {"do_lower_case": one.lower_case, "strip_accents": one.strip_accents}


@pytest.mark.parametrize(
    ("config", "lower_case", "strip_accents"),
    [
        ('{"do_lower_case": false, "strip_accents": null, "model_max_length": 512}', False, False),
        ('{"tokenizer_class": "BertTokenizer"}', True, True),
        ('{"do_lower_case": true, "strip_accents": false}', True, False),
    ],
)
def test_load_of_a_hugging_face_folder(
    tmp_path: pathlib.Path, config: str, lower_case: bool, strip_accents: bool
) -> None:
    vocab_file(tmp_path, SPECIAL)
    (tmp_path / "tokenizer_config.json").write_text(config)
    tokenizer = Tokenizer.load(str(tmp_path))
    assert (tokenizer.lower_case, tokenizer.strip_accents) == (lower_case, strip_accents)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "tokenizer_config.json does not exist.*do_lower_case"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"do_lower_case": "yes"}', "do_lower_case='yes' must be true or false"),
    ],
)
def test_load_of_a_broken_folder(tmp_path: pathlib.Path, config: str | None, message: str) -> None:
    vocab_file(tmp_path, SPECIAL)
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"[PAD]\n\xff\n", "not UTF-8.*byte 6"),
        ("\n".join([*SPECIAL, "a", "b", "a"]).encode(), "'a' in line 6 and again in line 8"),
        (b"[PAD]\n[UNK]\n[CLS]\na\n", r"lacks \[SEP\], \[MASK\]"),
    ],
)
def test_read_vocab_says_what_is_wrong(
    tmp_path: pathlib.Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_vocab(str(path))


def test_read_vocab_keeps_line_numbers(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL, "", "\u2028", " a "]).encode())
    assert read_vocab(str(path)) == [*SPECIAL, "", "", "a"]


def test_one_trace_serves_all_batches(tokenizer: Tokenizer) -> None:
    function = tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])
    texts = nasty_texts(64, seed=4)
    expected = tokenizer(tf.constant(texts)).to_list()
    assert function(tf.constant(texts)).to_list() == expected
    one_by_one = [function(tf.constant([text])).to_list()[0] for text in texts[:8]]
    assert one_by_one == expected[:8]
    assert function.experimental_get_tracing_count() == 1


def test_in_tf_data(tokenizer: Tokenizer) -> None:
    texts = nasty_texts(64, seed=5)
    expected = tokenizer(tf.constant(texts), offsets=True)
    dataset = tf.data.Dataset.from_tensor_slices(texts).batch(16)
    dataset = dataset.map(lambda text: tokenizer(text, offsets=True), num_parallel_calls=2)
    batches = list(dataset)
    for part, whole in enumerate(expected):
        assert [row for batch in batches for row in batch[part].to_list()] == whole.to_list()


SERVE = """
import sys, tensorflow as tf, tensorflow_text
assert not any(name.startswith("bert_tf") for name in sys.modules)
model = tf.saved_model.load(sys.argv[1])
print(model.ids(tf.constant([bytes.fromhex(text) for text in sys.argv[2:]])).to_list())
"""


def test_saved_model_needs_neither_bert_tf_nor_the_vocabulary(tmp_path: pathlib.Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_bytes((GOLDENS / "uncased.txt").read_bytes())
    module = tf.Module()
    module.tokenizer = Tokenizer(str(vocabulary))
    module.ids = tf.function(
        lambda text: module.tokenizer(text), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    texts = [b"Caf\xc3\xa9 [MASK] \xff", "\u039f\u0394\u039f\u03a3".encode(), b"plain text"]
    expected = module.ids(tf.constant(texts)).to_list()
    vocabulary.unlink()
    folder = tmp_path / "saved"
    tf.saved_model.save(module, str(folder))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 1_000_000
    command = [sys.executable, "-c", SERVE, str(folder), *(text.hex() for text in texts)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected


@pytest.mark.skipif(
    unicodedata.unidata_version != str(stored_tables()["unicode_version"]),
    reason="another version of Unicode",
)
def test_stored_tables_are_those_of_unicode_14() -> None:
    made, stored = unicode_table.tables(), stored_tables()
    assert made.keys() == stored.keys()
    for name, array in made.items():
        assert array.dtype == stored[name].dtype, name
        np.testing.assert_array_equal(array, stored[name], err_msg=name)


@pytest.mark.parametrize("name", ["uncased", "cased"])
def test_all_texts_with_the_published_vocabularies(shared: pathlib.Path, name: str) -> None:
    folder = {"uncased": "uncased_30522", "cased": "cased_28996"}[name]
    tokenizer = Tokenizer(str(shared / "data/vocab" / folder / "vocab.txt"), name == "uncased")
    with gzip.open(shared / "goldens/tokenization.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines]
    results = tokenizer(tf.constant([row["text"].encode() for row in rows])).to_list()
    assert results == [row[name] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi_cased_119547", "chinese_21128", "uncased_30522"])
@pytest.mark.parametrize("lower_case", [True, False])
def test_many_languages(shared: pathlib.Path, name: str, lower_case: bool) -> None:
    tokenizer = Tokenizer(str(shared / "data/vocab" / name / "vocab.txt"), lower_case)
    texts = (shared / "data/multilingual/udhr_388_languages.txt").read_bytes().split(b"\n")
    assert not differences(tokenizer, texts)


# ---------------------------------------------------------------------------- many texts at once


def test_chunks_are_in_order_and_traced_once() -> None:
    traces = []

    def measure(text: tf.Tensor, other: tf.Tensor) -> dict[str, tf.Tensor]:
        traces.append(text.shape)
        return {"length": tf.strings.length(text), "joined": tf.strings.join([text, other])}

    texts = [b"x" * number for number in range(23)]
    function = traced(measure, columns=2)
    for size in (1, 5, 23, 100):
        found = in_chunks(function, [texts, texts[::-1]], size)
        assert found["length"].tolist() == list(range(23))
        assert set(found["joined"]) == {b"x" * 22}
    assert traces == [[None]]


def test_no_texts_have_empty_results() -> None:
    function = traced(lambda text: (tf.strings.length(text), text), columns=1)
    lengths, same = in_chunks(function, [[]], 5)
    assert lengths.shape == same.shape == (0,)
    assert lengths.dtype == np.int32
