"""What a pydantic model has against its input, in one line."""

from __future__ import annotations

from pydantic import ValidationError

NAME_CHARS = 100


def first_complaint(error: ValidationError, whole: str = "input") -> str:
    """`where: what is wrong`, of the first problem alone; `whole` names the input itself.

    The offending value is not in it: it may be a secret, or megabytes. So may a name be that is
    not known: it is cut.
    """
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = " ".join(".".join(str(part) for part in first["loc"]).split())[:NAME_CHARS] or whole
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
