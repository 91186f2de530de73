"""Which cells wait and which run, so that no stage is trained twice at the same time."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


class Board:
    """Hands out cells, in their order but for those whose stages somebody trains right now.

    `stages` has for each cell the keys of its stages with their names, and is what tells which cells would train the
    same. A stage is done once its outcome lies in `share`, or once a worker has said so (a worker on another kind of
    device files it under another key, but for all cells alike).
    """

    def __init__(self, stages: Sequence[Mapping[str, str]], waiting: Iterable[int], share: Path) -> None:
        self._stages = stages
        self._share = share
        self._done: set[str] = set()
        self.waiting = list(waiting)
        self.running: set[int] = set()

    def choose(self) -> int | None:
        """The first cell none of whose missing stages is being trained for another cell; None: none can start now."""
        busy = {key for cell in self.running for key in self._stages[cell] if not self.done(key)}
        for cell in self.waiting:
            if busy.isdisjoint(self._stages[cell]):
                self.waiting.remove(cell)
                self.running.add(cell)
                return cell
        return None

    def done(self, key: str) -> bool:
        """Whether nobody has to train this stage any more."""
        if key not in self._done and (self._share / key / "outcome.json").is_file():
            self._done.add(key)
        return key in self._done

    def trained(self, cell: int, name: str) -> None:
        """A worker has trained one stage of its cell."""
        self._done |= {key for key, own in self._stages[cell].items() if own == name}

    def over(self, cell: int, *, well: bool) -> None:
        """A worker has ended its cell."""
        self.running.discard(cell)
        if well:
            self._done |= set(self._stages[cell])
