"""How well the members answer as assistants, measured on worked chats and kept while it holds."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from packfuse.errors import PromptError
from packfuse.generation.runtime import Runtime
from packfuse.models.member import Pause
from packfuse.paths import cache_root, write_text
from packfuse.progress import ProgressCallback, skill_progress
from packfuse.text.chats.chat_template import render_chat
from packfuse.weighting.methods.base import FitLimits
from packfuse.weighting.prefill import read_prompt
from packfuse.weighting.prefix_cache import PrefixCache
from packfuse.weighting.prompt_scores import PromptScores
from packfuse.weighting.worked_chats import CHATS, Skill, preferences

WORTH_KEEPING = 1.0
"""Seconds: what takes longer is kept in the cache folder, for later processes."""
MAX_KNOWN = 64
"""Packs whose skill is kept in memory: other packs of the same members have the same."""
_known: dict[str, Skill] = {}
_FORMAT = 1
"""Version of the files in the cache folder."""
_CACHE = 2**26
"""Bytes for the questions, which are read once for both answers."""


def skill_of(runtime: Runtime, pause: Pause | None = None) -> Skill:
    """The members' skill, measured once as long as their models do not change.

    Args:
        runtime: The pack; its members have been refreshed in this call.
        pause: Interrupts the measurement; None to measure without a pause.
    """
    key = _key(runtime)
    found = _known.get(key) or _load(key, len(runtime.members))
    found = found or _measured_and_kept(runtime, key, pause)
    _known[key] = found
    for old in list(_known)[:-MAX_KNOWN]:
        _known.pop(old, None)
    return found


def _measured_and_kept(runtime: Runtime, key: str, pause: Pause | None) -> Skill:
    began = time.perf_counter()
    with skill_progress(runtime.progress) as progress:
        found = _measured(runtime, progress, pause)
    if time.perf_counter() - began > WORTH_KEEPING:
        _save(key, found)
    return found


def _key(runtime: Runtime) -> str:
    """Digest of all that the skill depends on: samples of the weights, tokenizers, templates."""
    members = [
        [own.quick_digest(), own.vocabulary.fingerprint, own.tokenizer.chat_template]
        for own in runtime.members
    ]
    facts = [_FORMAT, CHATS, runtime.default_reference, members]
    return xxhash.xxh3_128_hexdigest(json.dumps(facts).encode())


def _path(key: str) -> Path:
    return cache_root() / "skill" / f"{key}.json"


def _load(key: str, members: int) -> Skill | None:
    """What was kept; None for nothing, or for a file that cannot be used."""
    try:
        rows = np.array(json.loads(_path(key).read_bytes()), dtype=np.float64)
    except (OSError, ValueError):
        return None
    return Skill(*rows) if rows.shape == (3, members) and np.isfinite(rows).all() else None


def _save(key: str, found: Skill) -> None:
    """Keep a result; where that fails, it is measured again in the next process."""
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps([row.tolist() for row in found]))
    except OSError as error:
        warnings.warn(f"{path} cannot be written: {error}", RuntimeWarning, stacklevel=2)


def _measured(runtime: Runtime, progress: ProgressCallback | None, pause: Pause | None) -> Skill:
    prefixes = PrefixCache(runtime.members, _CACHE)
    count = len(runtime.members)
    margins, losses, size = [], np.zeros(count), 0
    for number, chat in enumerate(CHATS):
        if pause:
            pause.call()  # a chat may be too short for a pause while it is read
        if progress:
            progress(number, len(CHATS))
        right, wrong = (
            _scores(runtime, chat.question, answer, prefixes, pause)
            for answer in (chat.right, chat.wrong)
        )
        if right is None or wrong is None:
            continue
        margins.append(right.of_text(1)[0] - wrong.of_text(1)[0])
        log_prob, read = right.of_text(0)
        losses, size = losses - log_prob, size + read
    weights, deviations = preferences(np.array(margins).reshape(-1, count).T)
    return Skill(weights, deviations, losses / max(size, 1))


def _scores(
    runtime: Runtime, question: str, answer: str, prefixes: PrefixCache, pause: Pause | None
) -> PromptScores | None:
    """The members' scores of a question and an answer; None if a member cannot read them.

    A context window may be too short for it, and a chat template may refuse it.
    """
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    reference = runtime.default_reference
    try:
        rendered = render_chat(messages, runtime.vocabularies, reference)
        return read_prompt(
            runtime.model(reference).engine,
            replace(rendered.prompt, texts=(question.encode(), answer.encode())),
            runtime.call,
            limits=FitLimits(pieces=None),
            prefixes=prefixes,
            pause=pause,
        ).scores
    except PromptError:
        return None
