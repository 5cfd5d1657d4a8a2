"""Names that belong to one run of ansible-playbook."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable


def of_this_run(folder: str) -> str:
    """A folder below this one, named by the process id of ansible-playbook; the same in all of its tasks."""
    playbook = multiprocessing.parent_process()  # tasks are templated in workers
    return f"{folder}/{os.getpid() if playbook is None else playbook.pid}"


class FilterModule:
    def filters(self) -> dict[str, Callable[[str], str]]:
        return {"of_this_run": of_this_run}
