"""The task in words, as the tokens or the vector that a graph takes: no transformers, no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from policy.errors import BadModelFile, MissingPackage
from policy.kinds import TASK_VECTOR, TOKEN_MASK, TOKENS
from policy.weights import Array

TOKENIZER_NAME = "tokenizer.json"
_MAX_TASK_CHARACTERS = 4096


class TaskReader(Protocol):
    """What a graph takes of a task."""

    def inputs(self, task: str) -> dict[str, Array]:
        """By input of the graph, without a batch axis."""


def task_reader(shapes: Mapping[str, tuple[int, ...]], folder: Path) -> TaskReader | None:
    """For a graph in ``folder`` with inputs of these shapes, without a batch axis.

    None: it reads no task. Raises as TaskWords.
    """
    if TOKENS in shapes:
        return TaskWords(folder / TOKENIZER_NAME, shapes[TOKENS][0])
    if TASK_VECTOR in shapes:
        return TaskVector(shapes[TASK_VECTOR][0])
    return None


def task_vector(task: str, size: int) -> Array:
    """float32 [size] of length 1: words, and two and three in a row, each hashed to random signs.

    The same on every host and for ever, with nothing to learn or to agree on; case, spaces and
    punctuation do not count. Two tasks are as near as the words that they share, give or take
    1/sqrt(size); what words mean is not in it. Zero for a task without words.
    """
    words = re.findall(r"\w+", task[:_MAX_TASK_CHARACTERS].casefold())
    if not words:
        return np.zeros(size, np.float32)
    pairs, triples = (
        [" ".join(words[at : at + length]) for at in range(len(words) + 1 - length)]
        for length in (2, 3)
    )
    # Red on blue and blue on red differ in triples alone. Words count twice: a new way to tell a
    # task shares those first, and the number of terms is odd, so that they never add up to nothing.
    terms = [*words, *words, *pairs, *triples]
    total = np.sum([_signs(term, size) for term in terms], axis=0)
    return np.asarray(total / np.linalg.norm(total), np.float32)


def _signs(term: str, size: int) -> Array:
    bits = np.frombuffer(hashlib.shake_256(term.encode()).digest((size + 7) // 8), np.uint8)
    return np.unpackbits(bits)[:size] * 2.0 - 1.0


class TaskVector:
    """The vector of ``size`` numbers that a graph takes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def inputs(self, task: str) -> dict[str, Array]:
        """float32 [size], as ``task_vector``."""
        return {TASK_VECTOR: task_vector(task, self._size)}


class TaskWords:
    """A tokenizer's file, and the number of tokens that the graph takes.

    Raises BadModelFile when the file is no tokenizer, MissingPackage, FileNotFoundError.
    """

    def __init__(self, path: Path, length: int) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingPackage(
                "a policy that reads its task needs tokenizers: install armada[smolvla]"
            ) from error
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the policy reads its task and has no tokenizer")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BadModelFile(f"{path}: not a tokenizer ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(length)
        self._length = length

    def inputs(self, task: str) -> dict[str, Array]:
        """Tokens and their mask, int64 [L]; what is too long is cut off.

        As LeRobot's processor of SmolVLA: the text ends with a line break, padding is on the right.
        """
        text = task[:_MAX_TASK_CHARACTERS]
        ids = self._tokenizer.encode(text if text.endswith("\n") else f"{text}\n").ids
        tokens, mask = np.zeros((2, self._length), np.int64)
        tokens[: len(ids)] = ids
        mask[: len(ids)] = 1
        return {TOKENS: tokens, TOKEN_MASK: mask}
