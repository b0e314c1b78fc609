"""The shape of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from kwdb_build.upgrade.context import Context


class Step(ABC):
    """One thing that is done, can be asked for, and can be taken back.

    name: for the journal, the logs and the fail points. title and way_back: for people, forwards and back. safe: until
    here nothing has changed, so that an error or Ctrl-C simply ends the run.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    way_back: ClassVar[str] = ""
    safe: ClassVar[bool] = True

    @abstractmethod
    def probe(self, context: Context) -> bool:
        """Is it already so in the world? Asked by a resume; must not change anything."""

    @abstractmethod
    def apply(self, context: Context) -> dict[str, Any]:
        """Do it; idempotent, as a resume may do it again. Returns details for the journal."""

    def undo(self, context: Context) -> dict[str, Any]:
        """Take it back; idempotent, and harmless when apply was cut off anywhere. Nothing by default."""
        del context
        return {}

    def discard(self, context: Context) -> None:
        """Remove what a safe step put outside of the run's directory, when the run goes no further. Idempotent."""
        del context
