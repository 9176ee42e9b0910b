"""Who else uses the device and is to be got along with: ComfyUI around the nodes, or, as here, nobody."""

from typing import Any

from u1_core.session import Session


class Host:
    """Nobody: a workflow that runs by itself. `nodes/` has the one for ComfyUI."""

    def busy(self) -> bool:
        """Whether a run is to give way between two steps."""
        return False

    def give_way(self) -> None:
        """A run gives way now, or has ended: free what memory can be had at no cost."""

    def make_room(self, session: Session) -> None:
        """A node is about to use this session: have others give up memory for it, and bring back what it has parked."""

    def take_back(self, session: Session, awaited: bool) -> bool:
        """The same for a run, whose thread holds the session's lease. False if the others need the memory now.

        `awaited`: whoever keeps the host busy is waiting for this run.
        """
        return True

    def tell(self, news: dict[str, Any]) -> None:
        """News of a run, at most a few times a second for each."""
