"""llama.cpp's real server, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A server that runs.

    Attributes:
        url: Its address.
        process: Its process.
    """

    url: str
    process: subprocess.Popen[str]


@contextmanager
def llama_server(
    gguf: Path, *, context: int = 256, port: int = 0, key: str = "", threads: int = 1
) -> Iterator[LlamaServer]:
    """Serve a GGUF file on this machine, until the end of the context."""
    command = [sys.executable, __file__, str(gguf), str(context), str(port), key, str(threads)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http"), "the server did not start"
        yield LlamaServer(url, process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def main(gguf: str, context: str, port: str, key: str, threads: str) -> None:
    """Serve until the process is killed."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.n_parallel = 4
    parameters.n_ctx = int(context) * parameters.n_parallel
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = int(port)
    parameters.api_keys = [key] if key else []
    parameters.cpuparams.n_threads = int(threads)
    parameters.n_gpu_layers = 0
    exact = xllamacpp.ggml_type.GGML_TYPE_F32  # its own default is float16
    parameters.cache_type_k = parameters.cache_type_v = exact
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.flash_attn_type = off
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
