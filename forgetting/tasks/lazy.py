"""Sequences that make their items when asked for them: the rest of the package reads them as it reads a tuple."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from numpy.typing import NDArray

ItemT = TypeVar("ItemT")


class Lazy(Sequence[ItemT]):
    """Equal to any sequence of equal items; a slice is a list."""

    __hash__ = None  # type: ignore[assignment]  # as a list

    @abstractmethod
    def item(self, index: int) -> ItemT:
        """Make the item at an index from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> ItemT: ...
    @overload
    def __getitem__(self, index: slice) -> list[ItemT]: ...
    def __getitem__(self, index: int | slice) -> ItemT | list[ItemT]:
        if isinstance(index, slice):
            return [self.item(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is not below the length {len(self)}")
        return self.item(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"


class Selected(Lazy[ItemT]):
    """Some items of a sequence, in an order of their own.

    Args:
        items: Of which; where these are selected themselves, their own sequence is read.
        order: Indices, int64 (N,).
    """

    def __init__(self, items: Sequence[ItemT], order: NDArray[Any]) -> None:
        self.items: Sequence[ItemT] = items
        self.order: NDArray[Any] = order
        if isinstance(items, Selected):
            self.items, self.order = items.items, items.order[order]

    def __len__(self) -> int:
        return len(self.order)

    def item(self, index: int) -> ItemT:
        """See :class:`Lazy`."""
        return self.items[int(self.order[index])]


class Changed(Lazy[ItemT]):
    """Every item of a sequence, changed by a function."""

    def __init__(self, items: Sequence[ItemT], change: Callable[[ItemT], ItemT]) -> None:
        self.items, self.change = items, change

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> ItemT:
        """See :class:`Lazy`."""
        return self.change(self.items[index])

    def __iter__(self) -> Iterator[ItemT]:
        return map(self.change, self.items)
