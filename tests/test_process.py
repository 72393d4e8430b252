"""Forks, and the end of the interpreter, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.quick import quick

ROOT = Path(__file__).parents[1]
START = """
import asyncio, os, signal, sys, threading, time, traceback
import torch
torch.set_num_threads(2)
from packfuse import Pack, aio
from packfuse.errors import ForkError
from tests.support.small import small_pack

pack = small_pack(prefix_cache="auto")
a = torch.ones(600, 600)
(a @ a).sum(), torch.ones(2_000_000).exp()  # starts torch's worker threads
request = pack.request("hello", {"max_new_tokens": 4})
alone = pack.generate("hello", max_new_tokens=4).text

def child(work):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    for _ in range(400):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "it hangs"

async def ask():
    answer = await aio.call(lambda cancel: pack.answers(request, cancel)[0])
    parts = [c.text async for c in aio.iterate(lambda cancel: pack.run_stream(request, cancel))]
    assert "".join(parts) == answer.text
    return answer.text

def answers():
    return pack.generate("hello", max_new_tokens=4).text == alone

def computes():
    return bool((a @ a).sum() > 0 and torch.ones(2_000_000).exp().sum() > 0)

def started(**arguments):
    begun, stopped = threading.Event(), threading.Event()
    def read():
        for _ in pack.stream("hello", max_new_tokens=300, **arguments):
            begun.set()
            if stopped.is_set():
                break
    thread = threading.Thread(target=read)
    thread.start()
    begun.wait()
    return lambda: (stopped.set(), thread.join())
"""


def run(program: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A program after `START`, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


FORKS = {
    "idle": "print(child(lambda: computes() and answers()))",
    "after async": """
        assert asyncio.run(ask()) == alone
        print(child(lambda: asyncio.run(ask()) == alone))
    """,
    "threads in the child": """
        def threads():
            texts = []
            each = [
                threading.Thread(target=lambda: texts.append(pack.answers(request)[0].text))
                for _ in range(3)
            ]
            [t.start() for t in each], [t.join() for t in each]
            return texts == [alone] * 3
        print(child(threads))
    """,
    "a child of a child": """
        print(child(lambda: child(answers) == 0))
    """,
    "from inside a call": """
        from transformers import StoppingCriteria
        found = []
        class Forking(StoppingCriteria):
            def __call__(self, ids, scores, **_):
                if not found:
                    found.append(child(lambda: pack.score("hello", " true long") < 0))
                return False
        pack.generate("hello", max_new_tokens=4, stopping_criteria=[Forking()])
        print(found[0])
    """,
    "while another thread generates": """
        stop = started()
        print(child(lambda: answers() and computes()))
        stop()
        assert answers()  # the parent goes on
    """,
    "while another thread has the lock for too long": """
        import packfuse.process
        packfuse.process._FORK_SECONDS = 0.1
        locked, go = threading.Event(), threading.Event()
        def hold():
            with pack.lock:
                locked.set()
                go.wait()
        threading.Thread(target=hold).start()
        locked.wait()
        def refused():
            try:
                pack.generate("hello", max_new_tokens=4)
            except ForkError as error:
                return "forked" in str(error) and computes()
        print(child(refused))
        go.set()
        assert answers()
    """,
    "another pack, while one generates": """
        other, stop = small_pack(), started()
        print(child(lambda: other.generate("hello", max_new_tokens=4).text == alone))
        stop()
    """,
    "a stream of the parent": """
        stream = pack.stream("hello", max_new_tokens=300)
        next(stream)
        def refused():
            try:
                next(stream)
            except ForkError:
                return True
        print(child(refused))
        stream.close()
    """,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("kind", quick(FORKS, 3))
def test_a_forked_child_answers_or_is_refused_at_once(kind: str) -> None:
    done = run(FORKS[kind])
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr


EXITS = {
    "a suspended stream": "stream = pack.stream('hello', max_new_tokens=400); next(stream)",
    "streams that wait": """
        streams = [pack.stream("hello", max_new_tokens=400) for _ in range(3)]
        next(streams[0])
        for stream in streams[1:]:
            threading.Thread(target=next, args=(stream,), daemon=True).start()
        time.sleep(0.2)
    """,
    "a daemon's call": """
        def work():
            pack.generate("hello", max_new_tokens=400)
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.3)
    """,
    "an async stream": """
        async def main():
            stream = aio.iterate(lambda cancel: pack.run_stream(long, cancel))
            await anext(stream)
            return stream
        long = pack.request("hello", {"max_new_tokens": 400})
        kept = asyncio.run(main())
    """,
    "an error": "stream = pack.stream('hello', max_new_tokens=400); next(stream); sys.exit(3)",
}


@pytest.mark.parametrize("kind", quick(EXITS, 2))
def test_the_interpreter_ends_in_order_with_open_calls(kind: str) -> None:
    done = run(EXITS[kind])
    assert done.returncode == (3 if kind == "an error" else 0), done.stderr
    assert done.stderr == ""


def test_the_interpreter_waits_for_the_thread_that_frees_a_pack() -> None:
    """Otherwise it would end that thread within a destructor of torch, and abort."""
    done = run("""
        class Slow:
            def __del__(self):
                time.sleep(1)
                print("freed", flush=True)
        pack.scheduler.slow = Slow()
        pack.generate("hello", max_new_tokens=2)
        del pack
    """)
    assert (done.stdout.strip(), done.returncode) == ("freed", 0), done.stderr
