"""The weights of kube-client-3m: a data package with one function, `model_path`."""

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The folder of the model in the format of `transformers`, with its model card (README.md)."""
    return Path(__file__).parent / "kube-client-3m"
