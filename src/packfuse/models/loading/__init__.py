"""Loading members: what is at a hub id, in a folder or a file, and whether it can be a member.

The way of a member: `Source` says where its files are, `check_weights` looks at those that would
be opened, transformers loads them, `check_loaded` compares them with the model, and `self_test`
reads a few tokens. `members` puts these together; other rooms import from here.
"""

from packfuse.models.loading.given import Loaded
from packfuse.models.loading.members import (
    load_given,
    load_member,
    load_members,
    loading_arguments,
    member_entry,
    member_names,
    refuse_loading,
    short_name,
    tokenizer_for_server,
    unique_names,
)
from packfuse.models.loading.pretrained import load_model, load_tokenizer

__all__ = [
    "Loaded",
    "load_given",
    "load_member",
    "load_members",
    "load_model",
    "load_tokenizer",
    "loading_arguments",
    "member_entry",
    "member_names",
    "refuse_loading",
    "short_name",
    "tokenizer_for_server",
    "unique_names",
]
