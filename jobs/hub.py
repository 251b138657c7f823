"""Models by name: a path, or org/name on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from quantmill.jobs.errors import JobError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Everything a conversion reads; never pickle files or other frameworks' weights.
_WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "*.md", "*.safetensors")
_UNWANTED = ("original/*", "onnx/*", "coreml/*", "consolidated*", "*.bin.index.json")


def local_model(name: str, revision: str | None = None) -> Path:
    """The path of a model on this machine; org/name that is no path here is downloaded first, resumably, with
    huggingface_hub's own cache, token and progress bar.

    Raises JobError: not there, not on the hub, no access, no network; a revision of a local path.
    """
    path = Path(name)
    if path.exists() or not _HUB_NAME.fullmatch(name):
        if revision is not None:
            raise JobError(f"--revision {revision}: {name} is a local path; revisions belong to org/name")
        if not path.exists():
            raise JobError(f"{name}: no such file or directory")
        return path
    return Path(_download(name, revision))


def _download(name: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return snapshot_download(
            repo_id=name, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED)
        )
    except GatedRepoError:
        raise JobError(
            f"{name}: access must be granted on huggingface.co first; then log in with 'hf auth login'"
        ) from None
    except RevisionNotFoundError:
        raise JobError(f"{name}: has no revision {revision}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise JobError(f"{name}: neither a path here nor a model on the Hugging Face hub") from None
    except (HfHubHTTPError, OSError) as error:
        why = " ".join(str(error).split())
        raise JobError(f"{name}: is no path here and cannot be downloaded ({why})") from None
