"""Files by patterns, local or `gs://`."""

from __future__ import annotations

import tensorflow as tf


def find_files(patterns: str, setting: str) -> tuple[str, ...]:
    """The files of globs with commas between them, sorted, each once.

    Args:
        patterns: as `--input_file` of the original release.
        setting: what the user set, for messages.

    Raises:
        ValueError: there is no pattern, one matches no file, or a folder cannot be listed.
    """
    wanted = [part.strip() for part in patterns.split(",") if part.strip()]
    if not wanted:
        raise ValueError(
            f"{setting} is empty: name files, as one or several patterns with commas between them."
        )
    return tuple(sorted({path for pattern in wanted for path in matches(pattern, setting)}))


def matches(pattern: str, setting: str) -> list[str]:
    """The files of one glob."""
    try:
        found = [path for path in tf.io.gfile.glob(pattern) if not tf.io.gfile.isdir(path)]
    except tf.errors.OpError as error:
        raise ValueError(f"{setting}: {pattern} cannot be listed: {error.message}") from None
    if not found:
        is_folder = tf.io.gfile.isdir(pattern)
        hint = (
            f"it is a folder: write {pattern}/*" if is_folder else "correct it, or make the files"
        )
        raise ValueError(f"{setting}: no file matches {pattern!r}; {hint}.")
    return found
