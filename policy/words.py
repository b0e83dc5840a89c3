"""The task in words, as the tokens that a graph takes: no transformers, no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from policy.errors import BadModelFile, MissingPackage
from policy.kinds import TOKEN_MASK, TOKENS
from policy.weights import Array

TOKENIZER_NAME = "tokenizer.json"
_MAX_TASK_CHARACTERS = 4096


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
