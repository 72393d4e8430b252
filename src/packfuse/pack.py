"""`Pack`: several local language models that answer as one."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packfuse.calls import PackCalls
from packfuse.errors import ConfigError
from packfuse.fusion.gates import gates
from packfuse.fusion.gates.nudge import Nudge
from packfuse.generation.runtime import Parts
from packfuse.models.loading import (
    load_given,
    load_members,
    member_entry,
    refuse_loading,
)
from packfuse.models.loading.given import Loaded
from packfuse.models.member import Member
from packfuse.progress import library_bars
from packfuse.settings import PackConfig, PackSettings


class Pack(PackCalls):
    """Several local language models that answer as one.

    This class loads, saves and copies packs; `PackCalls` has what can be asked of them.

    Attributes:
        runtime: Members, engines, caches and the lock, as calls use them.
        settings: How the members are fused and run.
        scheduler: Runs the calls of all threads.

    Example:
        >>> pack = Pack.starter()  # doctest: +SKIP
        >>> pack.generate("The capital of France is", max_new_tokens=2).text  # doctest: +SKIP
        ' Paris.'
    """

    @classmethod
    def from_pretrained(
        cls,
        models: Sequence[str | os.PathLike[str] | Mapping[str, Any] | Loaded],
        settings: PackSettings | None = None,
        *,
        progress: bool = True,
        **overrides: Any,
    ) -> Pack:
        """Load members and make a pack of them.

        Args:
            models: Hub ids, folders, GGUF files, mappings with the fields of `MemberSettings`, or
                (model, tokenizer) pairs that are loaded already.
            settings: See `PackSettings`.
            progress: Show progress of what takes long.
            **overrides: Fields of `PackSettings`, and of `LoadSettings` (dtype, device_map,
                quantization, ...) for members that do not say otherwise.

        Raises:
            LoadError: if a member cannot be loaded; the others are freed.
            ConfigError: for unknown settings.
        """
        found = load_given(models)
        if found is not None:
            refuse_loading(overrides)
            return cls(found, settings, progress=progress, **overrides)
        entries = [member_entry(model) for model in models]
        data = {**(settings or PackSettings()).values, "members": entries, **overrides}
        return cls._load(PackConfig.check(data), progress)

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str], *, progress: bool = True, **overrides: Any
    ) -> Pack:
        """Load the pack that a YAML file describes.

        Args:
            path: The file.
            progress: Show progress.
            **overrides: Fields of `PackConfig` that count instead of the file's. What lets models
                run code (`trust_remote_code`, `unsafe_weights`) is read from here alone.

        Raises:
            ConfigError: if the file does not describe a pack.
            LoadError: if a member cannot be loaded.
        """
        return cls._load(PackConfig.read(path, **overrides), progress)

    @classmethod
    def several(
        cls, configs: Mapping[str, PackConfig], *, progress: bool = True
    ) -> dict[str, Pack]:
        """Load several packs by name; members that they have in common are loaded once.

        Args:
            configs: The packs, from `PackConfig.read_several`.
            progress: Show progress.

        Raises:
            ConfigError: for unusable settings.
            LoadError: if a member cannot be loaded.
        """
        shared: dict[str, Member] = {}
        return {name: cls._load(own, progress, shared) for name, own in configs.items()}

    @classmethod
    def starter(
        cls,
        lineup: str = "pair",
        *,
        expert: bool = False,
        progress: bool = True,
        **overrides: Any,
    ) -> Pack:
        """A starter pack; fetched and converted once (see `packfuse starter`).

        Its models run in the type in which they are stored (bfloat16 or float32), or in float32 if
        the processor has no instructions for bfloat16.

        Args:
            lineup: Which one: "pair" (Qwen2.5-Coder-0.5B-Instruct and SmolLM2-135M-Instruct),
                "trio" (with gemma-3-270m, a base model) or "small" (the last two).
            expert: Add a third member, a small model of the Kubernetes Python client, from the
                package `packfuse-expert-kube` (in `packages/expert` of a checkout).
            progress: Show progress.
            **overrides: As in `from_pretrained`.

        Raises:
            ConfigError: for an unknown lineup.
            StarterError: if it cannot be fetched, verified or converted, or if the expert's
                package is not installed.
        """
        from packfuse.models.devices import has_bfloat16
        from packfuse.starter import starter_paths
        from packfuse.starter.expert import EXPERT, expert_path

        third = {EXPERT: expert_path()} if expert else {}  # fails before anything is downloaded
        folders = starter_paths(lineup, progress=progress) | third
        loading = {} if "dtype" in overrides or has_bfloat16() else {"dtype": "float32"}
        entries = [
            {"model": str(folder), "name": name, **loading} for name, folder in folders.items()
        ]
        return cls.from_pretrained(entries, progress=progress, **overrides)

    @classmethod
    def nudged(
        cls,
        base: Any,
        instruct: Any,
        *,
        threshold: float = Nudge().threshold,
        progress: bool = True,
        **overrides: Any,
    ) -> Pack:
        """A base model that writes, and an instruct model that nudges it where it is unsure.

        See `packfuse.fusion.gates.nudge.Nudge`: the instruct model writes a whole word there, and
        it alone decides where the answer ends.

        Args:
            base: The model that writes, as an item of `from_pretrained`'s `models`.
            instruct: The model that nudges; usually much smaller, of any vocabulary.
            threshold: The base model is unsure where its highest probability is below it (γ).
            progress: Show progress of what takes long.
            **overrides: As in `from_pretrained`.

        Raises:
            LoadError: if a member cannot be loaded; the other one is freed.
            ConfigError: for unknown settings, a threshold outside (0, 1), or a model that cannot
                end an answer.
        """
        gate = gates().make({"name": Nudge.name, "threshold": threshold})
        return cls.from_pretrained([base, instruct], progress=progress, gate=gate, **overrides)

    @classmethod
    def given(
        cls,
        *,
        pack: Pack | None = None,
        models: Sequence[Any] | None = None,
        pack_file: str | os.PathLike[str] | None = None,
        **loading: Any,
    ) -> Pack:
        """The pack that a front end was handed, in one of three ways.

        Args:
            pack: A pack that is loaded already.
            models: As for `from_pretrained`.
            pack_file: As for `from_config`.
            **loading: Further arguments of those two.

        Raises:
            ConfigError: unless there is exactly one of them, or for arguments beside a pack.
            LoadError: if a member cannot be loaded.
        """
        ways = {"pack": pack, "models": models, "pack_file": pack_file}
        names = [name for name, value in ways.items() if value is not None]
        if len(names) != 1:
            raise ConfigError(
                f"one of pack, models and pack_file is needed, got {' and '.join(names) or 'none'}",
                hint="try pack=Pack.starter()",
            )
        if models is not None:
            return cls.from_pretrained(models, **loading)
        if pack_file is not None:
            return cls.from_config(pack_file, **loading)
        if not isinstance(pack, Pack):
            raise ConfigError(f"{pack!r} is not a pack", hint="make one with Pack.from_pretrained")
        if loading:
            raise ConfigError(
                f"a loaded pack takes no {' and no '.join(loading)}", hint="load it with them"
            )
        return pack

    @classmethod
    def _load(
        cls, config: PackConfig, progress: bool, shared: dict[str, Member] | None = None
    ) -> Pack:
        # Names are checked before anything heavy is loaded.
        Parts.of(config)
        with library_bars(shown=progress):
            members = load_members(config, shared)
        try:
            return cls(members, PackSettings.of(config), config=config, progress=progress)
        except BaseException:
            members.clear()
            gc.collect()
            raise

    def save_config(self, path: str | os.PathLike[str]) -> None:
        """Write the pack as YAML, for `from_config`.

        Raises:
            ConfigError: if the members were handed over as objects, which no file can name.
        """
        self._named_config.write(Path(path))

    @property
    def _named_config(self) -> PackConfig:
        if self._config is None:
            raise ConfigError(
                "a pack of loaded models cannot be pickled or saved",
                hint="load it by name (Pack.from_pretrained(names))",
            )
        return self._config.replace(**self.runtime.named_settings.values)

    def __copy__(self) -> Pack:
        """The pack itself: copies share the members."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pack:
        """The pack itself: copies share the members, which are large."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: the pack is loaded again by the names of its members, as by a file."""
        return type(self)._load, (self._named_config, False)
