"""The tasks of the twin; a further one is a file and a row."""

from __future__ import annotations

from robot_io.twin.errors import NoSuchTask
from robot_io.twin.tasks.lift import LIFT
from robot_io.twin.tasks.place import PLACE
from robot_io.twin.tasks.push import PUSH
from robot_io.twin.tasks.sort import SORT
from robot_io.twin.tasks.stack import STACK
from robot_io.twin.tasks.task import TwinTask

TASKS = {task.name: task for task in (LIFT, PLACE, STACK, SORT, PUSH)}


def task_named(name: str) -> TwinTask:
    """The task of this name.

    Raises:
        NoSuchTask: one line with those that there are.
    """
    if name not in TASKS:
        raise NoSuchTask(f"the twin has no task {name!r}; it has {', '.join(TASKS)}")
    return TASKS[name]
