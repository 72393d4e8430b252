"""`Pack`: the handle on a pack of models."""

from __future__ import annotations

import gc
import os
import threading
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from packfuse.alignment.base import Alignment
from packfuse.errors import ConfigError
from packfuse.fusion.engine import Engine
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.rules.base import Rule
from packfuse.generation.answer import Answer, Chunk
from packfuse.generation.batcher import Batcher
from packfuse.generation.fused_model import FusedForCausalLM
from packfuse.generation.request import Request, make_draft, make_request
from packfuse.generation.runner import Runner
from packfuse.generation.weigh import Weighing, compare_weightings
from packfuse.models.compiled import Compiled, compile_steps
from packfuse.models.hf_member import HFMember
from packfuse.models.loading import load_members, short_name, unique_names, wrap
from packfuse.progress import alignment_progress, compile_progress
from packfuse.registry import alignments, drafts, gates, rules, weightings
from packfuse.settings import HEADS, HeadsName, PackConfig
from packfuse.text.chat_template import render_chat
from packfuse.weighting.methods.base import Weighting
from packfuse.weighting.prefix_cache import PrefixCache, prefix_limit

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class Pack:
    """Several local language models that answer as one.

    Example:
        >>> pack = Pack.starter()  # doctest: +SKIP
        >>> pack.generate("The capital of France is", max_new_tokens=2).text  # doctest: +SKIP
        ' Paris.'
    """

    def __init__(
        self,
        members: Sequence[HFMember],
        *,
        fusion: Any = "packllm",
        weighting: Any = "exact",
        alignment: Any = "bytes",
        reference: str = "auto",
        draft: Any = None,
        gate: Any = "every",
        prefix_cache: int | str = "auto",
        heads: HeadsName = "full",
        parallel: bool = False,
        compiled: bool = False,
        progress: bool = True,
        config: PackConfig | None = None,
    ) -> None:
        """Make a pack of loaded members; `from_pretrained` loads them.

        Args:
            members: At least one.
            fusion: A rule, by name, as `{"name": ..., parameter: ...}`, or as an object.
            weighting: Likewise; or `{member: weight}`.
            alignment: Likewise.
            reference: A member's name, or "auto": the one with the lowest prompt loss.
            draft: How answers to single prompts are drafted, to be checked in fewer passes: "auto",
                "lookup", "reference", "members", or as the others; None to write token by token.
                It changes no answer.
            gate: At which positions the members are fused; at the others the reference's own
                distribution is used. "every" or "safe" (token boundaries where members disagree).
            prefix_cache: Memory for prompts that were read, of which later ones that begin the same
                are spared as much: bytes, "auto" for 6 % of the members', 0 for none.
            heads: "pruned" cuts the output heads of the others to the tokens that the alignment
                reads, which is faster where their vocabularies are larger (docs/log.md); losses and
                weights stay as they are.
            parallel: Members read what is generated at the same time, but for those that share a
                device other than the processors. The answers are the same. On two cores it is
                slower than in turn (docs/log.md).
            compiled: Members read single tokens and drafts in compiled code, where their models
                allow it (`packfuse.models.compiled`). Steps of single prompts are compiled here,
                others when they are first needed: up to a minute for each kind, 10 seconds where an
                earlier process has left them on disk. Not together with `parallel`.
            progress: Show progress of what takes long.
            config: What the members were loaded from, for `save_config`.

        Raises:
            ConfigError: for unknown names or parameters, and those that exclude each other.
            WeightsError: for fixed weights that do not fit the members.
        """
        if not members:
            raise ConfigError("a pack needs at least one member")
        self.members = [compile_steps(m) if compiled else m for m in members]
        self.names = [member.name for member in members]
        self.rule: Rule = rules().make(fusion)
        if isinstance(weighting, Mapping) and "name" not in weighting:
            weighting = {"name": "fixed", "weights": dict(weighting)}
        self.weighting: Weighting = weightings().make(weighting)
        self.weighting.for_members(self.names)
        self.alignment: Alignment = alignments().make(alignment)
        if reference != "auto" and reference not in self.names:
            known = ", ".join(self.names)
            raise ConfigError(f"no member is called {reference!r}", hint=f"members: auto, {known}")
        self.draft = make_draft(draft)
        self.gate: Gate = gates().make(gate)
        if heads not in HEADS:
            raise ConfigError(f"heads={heads!r} is unknown", hint=f"known: {', '.join(HEADS)}")
        self.reference, self.heads = reference, heads
        _one_of(parallel, self.compiled)
        self.parallel = parallel
        self._progress, self._config = progress, config
        self._models: dict[int, FusedForCausalLM] = {}
        parameters = sum(p.nbytes for member in self.members for p in member.model.parameters())
        limit = prefix_limit(prefix_cache, parameters)
        self.prefixes = PrefixCache(self.members, limit) if limit else None
        self.lock = threading.RLock()
        self.batcher = Batcher(self)
        self.fused(self.default_reference)

    @classmethod
    def from_pretrained(
        cls,
        models: Sequence[str | os.PathLike[str] | Mapping[str, Any] | Loaded],
        *,
        fusion: Any = "packllm",
        weighting: Any = "exact",
        alignment: Any = "bytes",
        reference: str = "auto",
        draft: Any = None,
        gate: Any = "every",
        prefix_cache: int | str = "auto",
        heads: HeadsName = "full",
        parallel: bool = False,
        compiled: bool = False,
        dtype: Any = "auto",
        device_map: Any = None,
        quantization_config: Any = None,
        trust_remote_code: bool = False,
        unsafe_weights: bool = False,
        progress: bool = True,
    ) -> Pack:
        """Load members and make a pack of them.

        Args:
            models: Hub ids, folders, GGUF files, mappings with the fields of `MemberConfig`, or
                (model, tokenizer) pairs that are loaded already.
            fusion: See `Pack`.
            weighting: See `Pack`.
            alignment: See `Pack`.
            reference: See `Pack`.
            draft: See `Pack`.
            gate: See `Pack`.
            prefix_cache: See `Pack`.
            heads: See `Pack`.
            parallel: See `Pack`.
            compiled: See `Pack`.
            dtype: For members that do not say otherwise; so are the next two.
            device_map: As in transformers.
            quantization_config: A transformers quantization configuration.
            trust_remote_code: Run code that comes with a model.
            unsafe_weights: Accept weights that are not safetensors.
            progress: Show progress of what takes long.

        Raises:
            LoadError: if a member cannot be loaded; the others are freed.
            ConfigError: for unknown settings.
        """
        settings = {"fusion": fusion, "weighting": weighting, "alignment": alignment}
        _one_of(parallel, compiled)
        if isinstance(models, str | bytes | os.PathLike):
            raise ConfigError("`models` is a list", hint=f"write [{models!r}]")
        ready = [item for item in models if isinstance(item, tuple)]
        if ready:
            if len(ready) < len(models):
                raise ConfigError("loaded models and names cannot be mixed", hint="load them all")
            names = unique_names(
                [short_name(str(model.name_or_path or "member")) for model, _ in ready]
            )
            members = [wrap(name, *pair) for name, pair in zip(names, ready, strict=True)]
            return cls(
                members,
                reference=reference,
                draft=draft,
                gate=gate,
                progress=progress,
                prefix_cache=prefix_cache,
                heads=heads,
                parallel=parallel,
                compiled=compiled,
                **settings,
            )
        entries = [dict(m) if isinstance(m, Mapping) else {"model": os.fspath(m)} for m in models]  # type: ignore[arg-type]
        config = PackConfig.check(
            {
                "members": entries,
                "reference": reference,
                "prefix_cache": prefix_cache,
                "heads": heads,
                "parallel": parallel,
                "compiled": compiled,
                "dtype": _dtype_name(dtype),
                "device_map": device_map,
                "quantization": _plain_quantization(quantization_config),
                "trust_remote_code": trust_remote_code,
                "unsafe_weights": unsafe_weights,
                "fusion": _spec(rules(), fusion),
                "weighting": _spec(weightings(), weighting),
                "alignment": _spec(alignments(), alignment),
                "draft": None if draft is None else _spec(drafts(), draft),
                "gate": _spec(gates(), gate),
            }
        )
        return cls._load(config, progress, settings)

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str], *, progress: bool = True, **overrides: Any
    ) -> Pack:
        """Load the pack that a YAML file describes.

        Args:
            path: The file.
            progress: Show progress.
            **overrides: Fields of `PackConfig` that count instead of the file's.

        Raises:
            ConfigError: if the file does not describe a pack.
            LoadError: if a member cannot be loaded.
        """
        config = PackConfig.read(path)
        return cls._load(PackConfig.check({**config.model_dump(), **overrides}), progress, {})

    @classmethod
    def starter(cls, *, expert: bool = False, progress: bool = True, **overrides: Any) -> Pack:
        """The embedded default pack; fetched and converted once (see `packfuse starter`).

        Args:
            expert: Add the small expert that comes with packfuse as the third member; it knows the
                Kubernetes Python client and no more.
            progress: Show progress.
            **overrides: As in `from_pretrained`.

        Raises:
            StarterError: if it cannot be fetched, verified or converted.
        """
        from packfuse.starter.expert import EXPERT, expert_path
        from packfuse.starter.prepare import starter_paths

        folders = starter_paths(progress=progress)
        if expert:
            folders[EXPERT] = expert_path()
        entries = [{"model": str(folder), "name": name} for name, folder in folders.items()]
        return cls.from_pretrained(entries, progress=progress, **overrides)

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
    def _load(cls, config: PackConfig, progress: bool, settings: dict[str, Any]) -> Pack:
        # Names are checked before anything heavy is loaded.
        chosen = {
            "fusion": rules().make(settings.get("fusion", config.fusion)),
            "weighting": settings.get("weighting", config.weighting),
            "alignment": alignments().make(settings.get("alignment", config.alignment)),
        }
        members = load_members(config)
        try:
            return cls(
                members,
                reference=config.reference,
                draft=config.draft,
                gate=config.gate,
                prefix_cache=config.prefix_cache,
                heads=config.heads,
                parallel=config.parallel,
                compiled=config.compiled,
                progress=progress,
                config=config,
                **chosen,
            )
        except BaseException:
            members.clear()
            gc.collect()
            raise

    def save_config(self, path: str | os.PathLike[str]) -> None:
        """Write the pack as YAML, for `from_config`.

        Raises:
            ConfigError: if the members were handed over as objects, which no file can name.
        """
        if self._config is None:
            raise ConfigError(
                "this pack was made of loaded models", hint="load it by name to save it by name"
            )
        changes = {
            "fusion": rules().dump(self.rule),
            "weighting": weightings().dump(self.weighting),
            "alignment": alignments().dump(self.alignment),
            "draft": self.draft and drafts().dump(self.draft),
            "gate": gates().dump(self.gate),
        }
        PackConfig.check({**self._config.model_dump(), **changes}).write(Path(path))

    @property
    def compiled(self) -> bool:
        """Whether some member reads in compiled steps."""
        return any(isinstance(m, Compiled) and m.refused is None for m in self.members)

    @property
    def default_reference(self) -> int:
        """The reference where no prompt decides: the named one, or the first that can chat."""
        if self.reference != "auto":
            return self.names.index(self.reference)
        templates = (k for k, m in enumerate(self.members) if m.tokenizer.chat_template)
        return next(templates, 0)

    def fused(self, reference: int) -> FusedForCausalLM:
        """The pack as a transformers model that speaks member `reference`'s tokens."""
        with self.lock:
            if reference not in self._models:
                with alignment_progress(self._progress) as progress:
                    engine = Engine(
                        self.members,
                        reference,
                        self.alignment,
                        self.rule,
                        progress,
                        self.prefixes,
                        self.heads,
                        parallel=self.parallel,
                    )
                with compile_progress(self._progress) as progress:
                    engine.warm(progress)
                self._models[reference] = FusedForCausalLM(engine, self.weighting)
            return self._models[reference]

    @property
    def model(self) -> FusedForCausalLM:
        """The pack as a transformers model, in the default reference's tokens."""
        return self.fused(self.default_reference)

    @property
    def tokenizer(self) -> Any:
        """The default reference's tokenizer."""
        return self.members[self.default_reference].tokenizer

    @property
    def context_window(self) -> int:
        """The smallest member's, in tokens."""
        return min(member.context_window for member in self.members)

    def forget(self) -> None:
        """Free the prefix cache: the next prompt is read from its beginning."""
        with self.lock:
            if self.prefixes is not None:
                self.prefixes.clear()

    def generate(self, prompt: Any, **arguments: Any) -> Any:
        """Answer a prompt, a chat, or a list of either.

        Args:
            prompt: Text; messages `[{"role": ..., "content": ...}]`; or a list of texts or chats.
            **arguments: transformers' generation arguments by their own names, and `stop`, `seed`,
                `trace`, `fusion`, `weighting`, `weights`, `draft`, `gate`, `chat_template_kwargs`,
                `constraint` (a JSON schema, a pydantic model, `Regex` or `Grammar` of
                `packfuse.constraint`).

        Returns:
            An `Answer` (`.text`, `.record`) for one prompt, a list of them for a list. Several
            return sequences come as a list as well.

        Raises:
            PromptError: for an empty or malformed prompt, or one that is too long.
            ConfigError: for unknown settings.
            WeightsError: for unusable weights.
        """
        request = self.request(prompt, arguments)
        with self.lock:
            answers: list[Answer] = Runner(self, request).run()
        several = request.arguments.get("num_return_sequences", 1) > 1
        return answers[0] if request.single and not several else answers

    def stream(self, prompt: Any, **arguments: Any) -> Iterator[Chunk]:
        """Answer one prompt or chat piece by piece.

        Args:
            prompt: Text or messages.
            **arguments: As in `generate`.

        Yields:
            Chunks whose texts joined are the whole text; the last one carries the record. Closing
            the iterator stops generation within one step.

        Raises:
            ConfigError: for several prompts, beams or return sequences.
        """
        request = self.request(prompt, arguments)
        return self.run_stream(request)

    def request(self, prompt: Any, arguments: Mapping[str, Any]) -> Request:
        """A checked call, for those who run it themselves; see `generate`."""
        own: dict[str, Any] = {"rule": self.rule, "weighting": self.weighting}
        request = make_request(prompt, arguments, **own, draft=self.draft, gate=self.gate)
        request.weighting.for_members(self.names)
        return request

    def run_stream(
        self, request: Request, cancel: threading.Event | None = None
    ) -> Generator[Chunk]:
        """See `stream`; setting `cancel` stops generation within one step."""
        if not request.single or request.arguments.get("num_beams", 1) > 1:
            raise ConfigError("a stream answers one prompt, without beams", hint="use generate")
        return Runner(self, request, [cancel] if cancel else None).stream(self.lock)

    def count_tokens(self, prompt: Any, **template: Any) -> int:
        """How long a text or a chat is, in the default reference's tokens.

        Args:
            prompt: Text, which may be empty, or messages as they are rendered for an answer.
            **template: Arguments for the chat template.

        Raises:
            PromptError: for malformed messages.
        """
        reference = self.default_reference
        vocabularies = [member.vocabulary for member in self.members]
        if isinstance(prompt, str):
            return len(vocabularies[reference].encode(prompt))
        return len(render_chat(prompt, vocabularies[reference : reference + 1], 0, template).ids)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that answers depend on besides the call, as plain JSON, for caches.

        Members that came from nowhere by name are told apart by a random id.
        """
        sources = [str(member.model.name_or_path) for member in self.members]
        loaded = self._config.members if self._config else [None] * len(sources)
        return {
            "members": [
                {
                    "name": member.name,
                    "source": source or uuid.uuid4().hex,
                    "dtype": str(member.model.dtype),
                    **(config.model_dump(mode="json", exclude_none=True) if config else {}),
                }
                for member, source, config in zip(self.members, sources, loaded, strict=True)
            ],
            "reference": self.reference,
            "pack_fusion": rules().dump(self.rule),
            "pack_weighting": weightings().dump(self.weighting),
            "alignment": alignments().dump(self.alignment),
            "heads": self.heads,
            # Not `self.compiled`, which changes once the compiler has refused a member.
            "compiled": any(isinstance(member, Compiled) for member in self.members),
            "gate": gates().dump(self.gate),
            # What is drawn with a seed depends on it, though its distribution does not.
            "draft": self.draft and drafts().dump(self.draft),
        }

    @cached_property
    def thinks(self) -> bool:
        """Whether the default reference's template opens its reasoning with `<think>` by itself."""
        own = self.members[self.default_reference].vocabulary
        rendered = render_chat([{"role": "user", "content": "?"}], [own], 0)
        tail = "".join(own.spell(index) for index in rendered.ids[-16:])
        return tail.rstrip().endswith("<think>")

    def score(self, prompt: str, continuation: str, **arguments: Any) -> float:
        """Log-probability of `continuation` after `prompt` under the fused model, nats.

        What exactly is scored is lm-eval's definition, in the reference's tokens; see
        `packfuse.text.continuation`. Weights are fitted to the prompt.

        Raises:
            PromptError: if either is empty.
        """
        if not continuation:
            raise ConfigError("the continuation is empty", hint="give at least one character")
        request = self.request(prompt, arguments)
        with self.lock:
            return Runner(self, request).score(continuation)

    def weigh(
        self, prompt: Any, weightings: Sequence[Any] | None = None, **arguments: Any
    ) -> Weighing:
        """Who is trusted on a prompt, under several weightings; nothing is generated.

        Args:
            prompt: Text or messages.
            weightings: By name or with parameters; by default all that need no parameters.
            **arguments: `fusion` and `chat_template_kwargs`, as in `generate`.

        Raises:
            PromptError: for an empty or malformed prompt, or one that is too long.
            ConfigError: for unknown settings, or several prompts.
        """
        request = make_request(prompt, arguments, rule=self.rule, weighting=self.weighting)
        if not request.single:
            raise ConfigError("one prompt is weighed at a time", hint="give a text or one chat")
        with self.lock:
            return compare_weightings(Runner(self, request), weightings)


def _one_of(parallel: bool, compiled: bool) -> None:
    if parallel and compiled:
        raise ConfigError(
            "compiled members cannot read at the same time",
            hint="choose one of parallel=True and compiled=True",
        )


def _spec(registry: Any, value: Any) -> Any:
    """A setting as it can be written to a file."""
    if isinstance(value, registry.base):
        return registry.dump(value)
    if isinstance(value, Mapping) and "name" not in value:
        return {"name": "fixed", "weights": dict(value)}
    return value


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else str(dtype)


def _plain_quantization(config: Any) -> dict[str, Any] | None:
    if config is None or isinstance(config, dict):
        return config
    plain: dict[str, Any] = config.to_dict()
    return plain
