"""Model directories on the Hugging Face Hub: fetching, pushing, and the card that a pushed one gets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from clara_dist import __version__
from clara_dist.config.model import ROLES, ClaraConfig
from clara_dist.errors import ModelError

# Everything that a model directory is made of, and nothing else: what is fetched, and what a push replaces.
MODEL_FILES = [
    "config.json",
    "README.md",
    "memory_embeddings.safetensors",
    "base_embeddings.safetensors",
    *[f"{role}/adapter_{file}" for role in ROLES for file in ("config.json", "model.safetensors")],
    *["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"],
    *["vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "additional_chat_templates/*"],
]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def commit_of(base: str, revision: str | None = None, *, token: str | bool | None = None) -> str | None:
    """The commit that a revision of a hub model stands for (from the cache, where the Hub is out of reach).

    Args:
        base: A hub id; for a directory the answer is None.
        revision: Branch, tag or commit; None means the default branch.
        token: As `huggingface_hub` takes it.

    Raises:
        ModelError: It is neither a directory nor a model on the Hub that can be read.
    """
    if os.path.isdir(base):
        return None
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    with _telling(f"{base} is neither a directory nor a model on the Hub that can be read"):
        return str(HfApi().resolve_revision(base, revision=revision, token=token).resolved)


def model_directory(path: str | Path, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The local directory of a model: the path itself, or the snapshot of a hub repository's model files.

    Args:
        path: A directory, or a hub id if there is no such directory. A `pathlib.Path` is never a hub id.
        revision: Of a hub repository: branch, tag or commit.
        token: As `huggingface_hub` takes it.

    Raises:
        ModelError: It is neither.
    """
    if isinstance(path, Path) or os.path.isdir(path) or not _REPO_ID.fullmatch(path):
        if revision is not None:
            raise ModelError("only a model on the Hub has revisions", got=f"{path}, revision {revision}")
        return Path(path)
    with _telling(f"{path} is neither a model directory nor a model on the Hub that can be read"):
        return Path(snapshot_download(path, revision=revision, token=token, allow_patterns=MODEL_FILES))


def push_directory(
    folder: Path, repo_id: str, *, private: bool | None, token: str | bool | None, commit_message: str
) -> str:
    """Make a folder the content of a repository, which is created where it does not exist; the commit's URL.

    Model files that the repository has and the folder lacks are deleted in the same commit; other files stay.

    Raises:
        ModelError: The Hub refuses.
    """
    api = HfApi(library_name="clara_dist", library_version=__version__)
    with _telling(f"the Hub does not take the model as {repo_id}"):
        # The id comes back with the user's name where it had none.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True, token=token).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            delete_patterns=MODEL_FILES,
            token=token,
        )
    return str(commit.commit_url)


def model_card(config: ClaraConfig, repo_id: str) -> str:
    """README.md of a pushed model: the Hub's metadata, what it is, how it is loaded."""
    return f"""---
library_name: clara_dist
base_model: {config.base_model}
base_model_relation: adapter
pipeline_tag: text-generation
tags: [clara, rag, lora, peft]
---

# {repo_id.rpartition("/")[2]}

A CLaRa model (Continuous Latent Reasoning, arXiv 2511.18659): LoRA adapters ({", ".join(config.roles)}) on
`{config.base_model}` at commit `{config.base_revision}`, with {config.n_memory_tokens} memory tokens for a document
of up to {config.doc_max_tokens} tokens. Last training stage: {config.stage}.

```python
from clara_dist import Clara

clara = Clara.from_pretrained("{repo_id}")
clara.build_store(["The lighthouse was built by Ada Tolliver."], "my-store")
print(clara.answer(["Who built the lighthouse?"], "my-store", top_k=1)[0].text)
```

Each role is a PEFT adapter of its own: `PeftModel.from_pretrained(base, "{repo_id}", subfolder="generator")`.
"""


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """The Hub client's errors as ours."""
    try:
        yield
    except Exception as error:  # HTTP, validation, resolution, upload: its errors share no other base
        raise ModelError(what, got=error, hint="check the name, the network and the token (`hf auth login`)") from error
