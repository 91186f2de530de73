"""Order of the cells of a comparison, such that no stage is trained twice at the same time."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


class Scheduler:
    """Selects the next cell in order, skipping cells that need a stage which is training now.

    `stages` maps for each cell the keys of its stages to their names; cells with a common key share that stage. A
    stage is done once its outcome is in `share`, or once a worker has reported it (a worker on another kind of device
    stores it under another key, which is the same for all cells).
    """

    def __init__(self, stages: Sequence[Mapping[str, str]], waiting: Iterable[int], share: Path) -> None:
        self._stages = stages
        self._share = share
        self._done: set[str] = set()
        self.waiting = list(waiting)
        self.running: set[int] = set()

    def choose(self) -> int | None:
        """The first waiting cell that shares no unfinished stage with a running cell; None: no cell can start now."""
        busy = {key for cell in self.running for key in self._stages[cell] if not self.done(key)}
        for cell in self.waiting:
            if busy.isdisjoint(self._stages[cell]):
                self.waiting.remove(cell)
                self.running.add(cell)
                return cell
        return None

    def done(self, key: str) -> bool:
        """Whether this stage is trained."""
        if key not in self._done and (self._share / key / "outcome.json").is_file():
            self._done.add(key)
        return key in self._done

    def trained(self, cell: int, name: str) -> None:
        """Record that a worker has trained one stage of a cell."""
        self._done |= {key for key, stage in self._stages[cell].items() if stage == name}

    def ended(self, cell: int, *, succeeded: bool) -> None:
        """Record that a cell has ended, successfully or not."""
        self.running.discard(cell)
        if succeeded:
            self._done |= set(self._stages[cell])
