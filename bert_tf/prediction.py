"""Answers as files: JSON lines for everybody, and what official scorers and servers expect."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import tensorflow as tf

from bert_tf.run_folder import writing


def write_files(folder: str, files: Mapping[str, Sequence[str]]) -> list[str]:
    """Writes lines by file name (of `Answers.files`), each file whole or not at all.

    Returns:
        The paths.

    Raises:
        ValueError: the folder cannot be written.
    """
    paths = [os.path.join(folder, name) for name in files]
    with writing(folder):
        for path, lines in zip(paths, files.values(), strict=True):
            tf.io.gfile.makedirs(os.path.dirname(path))
            with tf.io.gfile.GFile(path + ".tmp", "w") as file:
                for line in lines:
                    file.write(line + "\n")
            tf.io.gfile.rename(path + ".tmp", path, overwrite=True)
    return paths


def make_folder(folder: str) -> None:
    """Makes a folder before the work whose results it is for; raises ValueError as `writing`."""
    with writing(folder):
        tf.io.gfile.makedirs(folder)
