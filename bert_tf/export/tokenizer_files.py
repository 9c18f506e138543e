"""The tokenizer as files of Hugging Face: `vocab.txt`, `tokenizer.json`, `tokenizer_config.json`.

`tokenizer.json` is read by the `tokenizers` library (Rust, JavaScript, Python), and gives the ids
of `bert_tf.Tokenizer` but for

- special pieces written in a text: `[SEP]` is that piece there, and five characters here;
- a capital sigma that ends a word, which Python and the original release lower to the final form;
- characters for private use, which vanish there and make their word [UNK] here, and about 760 rare
  ones of 145,819 (tokenizers 0.23.3): marks and punctuation newer than its Unicode, and 256
  ideographs;
- pairs that are cut to an odd number of pieces: where both are long, the longer text keeps one
  more there, the first one here.

transformers 5 makes its BertTokenizer of the vocabulary alone, with words of more than 100
characters as [UNK]; the limit of the original release, and in `tokenizer.json`, is 200.
"""

from __future__ import annotations

import os
from typing import Any

from bert_tf.config import write_json
from bert_tf.text_normalization import MAX_CHARACTERS_PER_WORD
from bert_tf.tokenization import SPECIAL_PIECES, SUFFIX_MARK, Tokenizer


def write_tokenizer(folder: str, tokenizer: Tokenizer, max_seq_length: int) -> None:
    """Writes the three files into a folder; `max_seq_length` is where clients should cut."""
    tokenizer.save(folder)
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lower_case,
        "strip_accents": tokenizer.strip_accents,
        "tokenize_chinese_chars": True,
        "model_max_length": max_seq_length,
    }
    write_json(os.path.join(folder, "tokenizer_config.json"), settings)
    write_json(os.path.join(folder, "tokenizer.json"), fast_tokenizer(tokenizer))


def fast_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`."""
    # Some published vocabularies have empty lines, whose numbers count; no text has such a piece.
    vocab = {piece or f"[empty {number}]": number for number, piece in enumerate(tokenizer.vocab)}
    cls, sep = special("[CLS]", 0), special("[SEP]", 0)
    first, second = sequence("A", 0), sequence("B", 1)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab[piece],
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for piece in sorted(SPECIAL_PIECES, key=vocab.__getitem__)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": tokenizer.strip_accents,
            "lowercase": tokenizer.lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, sep],
            "pair": [cls, first, sep, second, special("[SEP]", 1)],
            "special_tokens": {
                piece: {"id": piece, "ids": [vocab[piece]], "tokens": [piece]}
                for piece in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": SUFFIX_MARK, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": SUFFIX_MARK,
            "max_input_chars_per_word": MAX_CHARACTERS_PER_WORD,
            "vocab": vocab,
        },
    }


def special(piece: str, segment: int) -> dict[str, Any]:
    """A special piece in a template."""
    return {"SpecialToken": {"id": piece, "type_id": segment}}


def sequence(name: str, segment: int) -> dict[str, Any]:
    """The pieces of the first or second text in a template."""
    return {"Sequence": {"id": name, "type_id": segment}}
