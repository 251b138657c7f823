"""The Hugging Face hub: models by name, files of data sets, what other repositories hold.

Downloads are resumable and cached, with huggingface_hub's own cache, token and progress bar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmill.errors import one_line
from quantmill.jobs.errors import JobError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Everything a conversion reads; never pickle files or other frameworks' weights.
_WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "*.md", "*.safetensors")
_UNWANTED = ("original/*", "onnx/*", "coreml/*", "consolidated*", "*.bin.index.json")


@dataclass(frozen=True)
class Hub:
    """endpoint: the address of the hub or of a mirror, None: where huggingface_hub goes by itself. token, cache: None:
    its own."""

    endpoint: str | None = None
    token: str | None = None
    cache: Path | None = None

    @property
    def api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token)

    def model(self, name: str, revision: str | None = None) -> Path:
        """All files of a model that a conversion reads. Raises JobError."""
        with _explained(name, "neither a path here nor a model on the Hugging Face hub", revision):
            return Path(
                self.api.snapshot_download(
                    repo_id=name,
                    revision=revision,
                    allow_patterns=list(_WANTED),
                    ignore_patterns=list(_UNWANTED),
                    cache_dir=self.cache,
                )
            )

    def file(self, repo: str, file: str, repo_type: str) -> Path:
        """One file of a repository ("model" or "dataset"). Raises JobError."""
        with _explained(f"{repo}:{file}", f"there is no {_KIND[repo_type]} {repo} with this file on the hub"):
            return Path(
                self.api.hf_hub_download(
                    repo_id=repo, filename=file, repo_type=repo_type, cache_dir=self.cache
                )
            )

    def files(self, repo: str, repo_type: str) -> Mapping[str, int]:
        """All files of a repository with their sizes in bytes. Raises JobError."""
        with _explained(repo, f"there is no such {_KIND[repo_type]} on the hub"):
            found: Any = self.api.list_repo_tree(repo, recursive=True, repo_type=repo_type)
            return {one.path: one.size for one in found if getattr(one, "size", None) is not None}


_KIND = {"model": "model repository", "dataset": "data set"}


def local_model(name: str, revision: str | None = None, hub: Hub | None = None) -> Path:
    """The path of a model on this machine; org/name that is no path here is downloaded first.

    Raises JobError: not there, not on the hub, no access, no network; a revision of a local path.
    """
    if not name:
        raise JobError("the name of the model is empty")
    path = Path(name)
    if path.exists() or not HUB_NAME.fullmatch(name):
        if revision is not None:
            raise JobError(f"--revision {revision}: {name} is a local path; revisions belong to org/name")
        if not path.exists():
            raise JobError(f"{name}: no such file or directory")
        return path
    return (hub or Hub()).model(name, revision)


@contextmanager
def _explained(name: str, not_there: str, revision: str | None = None) -> Iterator[None]:
    """What huggingface_hub raises, in one line that says what to do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise JobError(
            f"{name}: access must be granted on huggingface.co first; then log in with 'hf auth login'"
        ) from None
    except RevisionNotFoundError:
        raise JobError(f"{name}: has no revision {revision}") from None
    except LocalEntryNotFoundError as error:
        raise JobError(f"{name}: is no path here and cannot be downloaded ({one_line(error)})") from None
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError):
        raise JobError(f"{name}: {not_there}") from None
    except (HTTPError, OSError) as error:  # of the answers, and where there is none
        raise JobError(f"{name}: is no path here and cannot be downloaded ({one_line(error)})") from None
