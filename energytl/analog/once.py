"""What follows from weights and ρ alone, worked out once for many reads."""

from collections.abc import Callable
from typing import Any


def once(kept: dict[str, Any] | None, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401
    """What was kept under the name, or else is made now, and kept if anything is.

    >>> kept = {}
    >>> once(kept, "one", lambda: 1), once(kept, "one", lambda: 2), once(None, "one", lambda: 3)
    (1, 1, 3)
    """
    if kept is None:
        return make()
    if name not in kept:
        kept[name] = make()
    return kept[name]
