"""The vocabulary file: one WordPiece a line, its id the number of the line from 0."""

from __future__ import annotations

import re

import tensorflow as tf

from bert_tf import unicode_table

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SUFFIX_MARK = "##"  # begins the pieces that continue a word


def read_vocab(path: str) -> list[str]:
    """Reads a vocabulary; white space around a piece goes, as in the original's `load_vocab`.

    Args:
      path: a local path, or any that `tf.io.gfile` opens, such as `gs://bucket/vocab.txt`.

    Raises:
      ValueError: the file is missing, empty, not UTF-8, has a piece twice (unless empty: a few
        published files have such lines and their numbers count) or lacks a special piece.
    """
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise ValueError(
            f"The vocabulary {path} is not a file. Give the path of a vocab.txt, one piece a line."
        )
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The vocabulary {path} is not UTF-8 (byte {error.start}). Save it as UTF-8."
        ) from error
    pieces = [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not any(pieces):
        raise ValueError(f"The vocabulary {path} is empty. It needs one piece a line.")
    first_line: dict[str, int] = {}
    for number, piece in enumerate(pieces, start=1):
        if piece and first_line.setdefault(piece, number) != number:
            raise ValueError(
                f"The vocabulary {path} has {piece!r} in line {first_line[piece]} and again in "
                f"line {number}. An id must have one piece: remove one, or rename it [unused0]."
            )
    missing = [piece for piece in SPECIAL_PIECES if piece not in first_line]
    if missing:
        raise ValueError(
            f"The vocabulary {path} lacks {', '.join(missing)}. BERT needs "
            f"{', '.join(SPECIAL_PIECES)}, each on a line of its own; is this a BERT vocabulary?"
        )
    return pieces


class Vocabulary:
    """Pieces by id and ids by piece."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = tuple(pieces)
        self.ids = {piece: piece_id for piece_id, piece in enumerate(pieces)}

    def matchable_pieces(self) -> tuple[list[str], str, tuple[tuple[int, int], ...]]:
        """The pieces as tensorflow-text's matcher should have them.

        A piece that no text can produce, such as "[MASK]", "##" or an empty line, gets a name
        that no text can produce either, since the matcher refuses or misreads some of them.

        Returns:
          V pieces; the one for unknown words; and (code point, stand-in) of the characters that
          are newer than the Unicode of the table: tensorflow-text's own Unicode may call them
          punctuation, the original calls them letters, and a stand-in settles it.
        """
        newer = unicode_table.unassigned_characters(set().union(*self.pieces))
        first = unicode_table.FIRST_STAND_IN
        stand_ins = {ord(code): first + place for place, code in enumerate(newer)}
        first += len(newer)
        matchable = [
            piece.translate(stand_ins) if _can_be_produced(piece) else chr(first + piece_id)
            for piece_id, piece in enumerate(self.pieces)
        ]
        return matchable, matchable[self.ids["[UNK]"]], tuple(stand_ins.items())


# Words are letters alone or one other character alone.
_ASCII_OTHER = re.compile(r"[\x00-/:-@\[-`{-\x7f]")


def _can_be_produced(piece: str) -> bool:
    body = piece.removeprefix(SUFFIX_MARK)
    if len(piece) == 1:
        return piece > " "  # the matcher keeps control characters for itself
    return bool(body) and not _ASCII_OTHER.search(body)
