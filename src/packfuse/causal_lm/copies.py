"""How the pack's transformers model is shown, copied and pickled, and what it leaves to members."""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self

from torch import nn

from packfuse.errors import UnsupportedError
from packfuse.fusion.engine import Engine


class SharedMembers:
    """Copies share the members, which are large, and have configurations of their own."""

    engine: Engine
    config: Any
    generation_config: Any

    def __repr__(self) -> str:
        """The members and the reference; their layers are not shown."""
        names = [member.name for member in self.engine.members]
        return (
            f"{type(self).__name__}(members: {', '.join(names)}; "
            f"reference {names[self.engine.reference_index]}, vocabulary {self.config.vocab_size})"
        )

    def __copy__(self) -> Self:
        """A model with the same members."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__, _modules=dict(self.__dict__["_modules"]))
        new.config = copy.deepcopy(self.config)
        new.generation_config = copy.deepcopy(self.generation_config)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same as a copy."""
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        """Not supported: pickling would write the weights of all members."""
        raise UnsupportedError(
            "a pack's model cannot be pickled", hint="pickle the Pack, or use Pack.save_config"
        )

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Do nothing: the members' weights were tied when they were loaded."""

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the members have their weights."""
