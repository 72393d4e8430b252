r"""Writes what servers answer to the calls of tests/support/served_calls.py, for the tests.

    python dev/exchanges.py vllm http://127.0.0.1:8123
    python dev/exchanges.py sglang

vLLM's answers are recorded. It serves the starter pack's SmolLM2-135M-Instruct:

    vllm serve FOLDER --served-model-name smol --dtype float32 --max-model-len 512 \
        --max-logprobs 256 --enable-prompt-tokens-details

SGLang needs a GPU, so its answers are composed: of the fields that the source of the version below
writes, and of the probabilities that the same model has in this process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from packfuse import Pack
from packfuse.models.member import Member, Read
from packfuse.models.remote.client import Client
from packfuse.starter import starter_paths

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import replay, served_calls  # noqa: E402 (of this repository, and no package)

FOLDER = ROOT / "tests" / "models" / "remote"
VLLM, SGLANG = "0.32.0", "0.5.23"
ABOUT = {
    "vllm": f"Recorded from vLLM {VLLM} by dev/exchanges.py.",
    "sglang": f"Composed by dev/exchanges.py from the source of SGLang {SGLANG}, and not recorded: "
    "fields and shapes are those that the source writes, probabilities those of the model.",
}
CONTEXT = 512
_CHANGING = ("id", "created", "decoded_token", "permission", "e2e_latency")


class Sglang:
    """Answers as SGLang does, with the probabilities of a member in this process."""

    def __init__(self, member: Member) -> None:
        """`member` is the model that it serves."""
        self.member = member
        self._read: list[list[int]] = []
        self._lock = threading.Lock()

    def __call__(self, method: str, path: str, body: Any) -> replay.Answer:
        """The answer to one request."""
        if (method, path) == ("GET", "/v1/models"):
            card = {"id": "smol", "object": "model", "created": 0, "owned_by": "sglang"}
            card |= {"root": "smol", "parent": None, "max_model_len": CONTEXT}
            return 200, {"object": "list", "data": [card]}
        if (method, path) == ("POST", "/tokenize"):
            tokenizer, special = self.member.tokenizer, body["add_special_tokens"]
            ids = tokenizer.encode(body["prompt"], add_special_tokens=special)
            return 200, {"tokens": ids, "count": len(ids), "max_model_len": 8192}
        if (method, path) == ("POST", "/generate"):
            with self._lock:
                return self._generate(body)
        return 404, {"detail": "Not Found"}

    def _generate(self, body: Mapping[str, Any]) -> replay.Answer:
        ids, k, start = body["input_ids"], body["top_logprobs_num"], body["logprob_start_len"]
        size = len(ids)
        if size >= CONTEXT:
            problem = (
                f"The input ({size} tokens) is longer than the model's context length "
                f"({CONTEXT} tokens)."
            )
            return 400, {"error": {"message": problem}}
        logps = self.member.read([Read(self.member.open(), ids, size)])[0]
        values, indices = logps.topk(k)
        # Entry n of a row: log-probability, id, and a text that was not asked for.
        rows = [
            [[value, index, None] for value, index in zip(*row, strict=True)]
            for row in zip(values.tolist(), indices.tolist(), strict=True)
        ]
        chosen = rows[-1][0]
        inner = range(start + 1, size) if start >= 0 else range(0)
        first = [[None, ids[start], None]] if start >= 0 else []
        scored = [[float(logps[at - 1, ids[at]]), ids[at], None] for at in inner]
        places = [None] if start >= 0 else []
        return 200, {
            "text": self.member.tokenizer.decode([chosen[1]]),
            "output_ids": [chosen[1]],
            "meta_info": {
                "id": "0",
                "finish_reason": {"type": "length", "length": 1},
                "prompt_tokens": size,
                "weight_version": "default",
                "num_retractions": 0,
                "input_token_logprobs": [*first, *scored],
                "output_token_logprobs": [chosen],
                "output_token_logprobs_length": 1,
                "input_top_logprobs": [*places, *(rows[at - 1] for at in inner)],
                "output_top_logprobs": [rows[-1]],
                "reasoning_tokens": 0,
                "completion_tokens": 1,
                "cached_tokens": self._cached(ids, start),
                "e2e_latency": 0.0,
            },
        }

    def _cached(self, ids: list[int], start: int) -> int:
        """How many tokens are in the prefix cache: never the last one, nor one behind `start`."""
        most = min(len(ids) - 1, start) if start >= 0 else len(ids) - 1
        found = max((_common(own, ids) for own in self._read), default=0)
        self._read.append(ids)
        return min(found, most)


def _common(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@contextmanager
def recording() -> Iterator[list[dict[str, Any]]]:
    """The exchanges of all members meanwhile, each once."""
    found: list[dict[str, Any]] = []
    sent = Client._sent

    def recorded(client: Client, path: str, send: Callable[[], httpx.Response]) -> httpx.Response:
        answer = sent(client, path, send)
        if client.name != "smol":
            return answer
        content = answer.request.content
        one = {
            "method": answer.request.method,
            "path": path,
            "body": json.loads(content) if content else None,
            "status": answer.status_code,
            "answer": _plain(answer.json()),
        }
        if not any(_asked(one) == _asked(other) for other in found):
            found.append(one)
        return answer

    Client._sent = recorded  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Client._sent = sent  # type: ignore[method-assign]


def _asked(one: Mapping[str, Any]) -> list[Any]:
    return [one[name] for name in ("method", "path", "body")]


def _plain(value: Any) -> Any:
    """Without what differs from run to run; numbers have six digits after the point."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if name not in _CHANGING}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def record(api: str, url: str, folder: Path) -> None:
    """Make the calls, and write the exchanges."""
    with (
        tempfile.TemporaryDirectory() as place,
        served_calls.tiny_served(Path(place)) as tiny,
        recording() as found,
    ):
        member = served_calls.load(url, folder)
        served_calls.read(member)
        served_calls.answer(member, tiny)
    for one in found:
        if one["path"] == "/v1/models":  # the folder would be one of this machine
            one["answer"]["data"][0] |= {"id": "smol", "root": "smol"}
    version = {"vllm": VLLM, "sglang": SGLANG}[api].rsplit(".", 1)[0].replace(".", "_")
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in found)
    about = json.dumps(ABOUT[api])
    text = f'{{"about": {about},\n"exchanges": [\n{lines}\n]}}\n'
    (FOLDER / f"{api}_{version}.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Record or compose."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("api", choices=list(ABOUT))
    parser.add_argument("url", nargs="?", help="address of the server that is recorded")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # about few candidates
    folder = starter_paths(progress=False)["SmolLM2-135M-Instruct"]
    if options.api == "vllm":
        record(options.api, options.url, folder)
        return
    settings = {"model": str(folder), "dtype": "float32"}
    (local,) = Pack.from_pretrained([settings], progress=False).members
    with replay.answering(Sglang(local)) as url:
        record(options.api, url, folder)


if __name__ == "__main__":
    main()
