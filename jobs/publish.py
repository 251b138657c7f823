"""run(job): put what a squeeze made on the hub, after a look at all that could go wrong.

Uploads go by huggingface_hub, which does not send again what is there: the same call goes on with a stopped one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

from quantmill.errors import one_line
from quantmill.gguf_io.filesystem import digest
from quantmill.jobs.errors import JobError
from quantmill.jobs.hub import HUB_NAME, Hub
from quantmill.jobs.memory import Memory
from quantmill.jobs.recipe import RECIPE, recipe_path
from quantmill.jobs.squeeze_card import RECORD, read_record
from quantmill.jobs.squeeze_request import MEMORY
from quantmill.jobs.watcher import Silent, Watcher

_CARD = "README.md"
_FURTHER = ("index.html",)


@dataclass(frozen=True)
class Job:
    """directory: of a squeeze. repository: org/name, made where it is not there; private: then for oneself."""

    directory: Path
    repository: str
    private: bool = False
    hub: Hub = field(default_factory=Hub)

    def __post_init__(self) -> None:
        if not HUB_NAME.fullmatch(self.repository):
            raise JobError(f"{self.repository}: is no repository; give one as org/name")


@dataclass(frozen=True)
class Plan:
    """files: that will be uploaded, complete. others: GGUF files that no card speaks of, left where they are."""

    files: tuple[Path, ...]
    others: tuple[Path, ...]

    @property
    def n_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


@dataclass(frozen=True)
class Result:
    plan: Plan
    url: str


def plan_job(job: Job, watcher: Watcher | None = None) -> Plan:
    """What would be uploaded; asks nobody. Raises JobError: no card, a file that is not what the card says."""
    watcher = watcher or Silent()
    directory = job.directory
    record = Memory(directory / MEMORY).directory / f"{RECORD}.json"
    if not record.is_file():
        raise JobError(
            f"{directory}: no squeeze is finished here; publish takes the folder that squeeze made"
        )
    if not (directory / _CARD).is_file():
        raise JobError(f"{directory / _CARD}: there is no card; run the squeeze again, it will make one")
    files = [directory / _CARD, *(directory / name for name in _FURTHER if (directory / name).is_file())]
    # Others' files are measured too, but lie elsewhere.
    made = [
        result.file
        for result in read_record(record).models
        if Path(result.file.path).stem == result.file.name
    ]
    watcher.began("checking files", sum(file.bytes for file in made), "bytes")
    for file in made:
        path = directory / file.path
        if not path.is_file():
            raise JobError(f"{path}: is in the card but not there; run the squeeze again")
        if digest([path]) != file.sha256:
            raise JobError(f"{path}: is not the file that was measured; run the squeeze again")
        watcher.progressed(file.bytes, file.path)
        files.append(path)
        if RECIPE.holds(recipe_path(path)):
            files.append(recipe_path(path))
    files += sorted(directory.glob("*.imatrix.gguf"))
    others = [path for path in sorted(directory.glob("*.gguf")) if path not in files]
    return Plan(tuple(files), tuple(others))


def run(job: Job, watcher: Watcher | None = None) -> Result:
    """Raises JobError: as plan_job, no login, no right to write there; the hub cannot be reached."""
    watcher = watcher or Silent()
    plan = plan_job(job, watcher)
    for path in plan.others:
        watcher.note(f"{path}: is not in the card, and not uploaded")
    _require_login(job)
    with _explained(job.repository):
        url = job.hub.api.create_repo(job.repository, private=job.private or None, exist_ok=True)
        job.hub.api.upload_folder(
            repo_id=job.repository,
            folder_path=job.directory,
            allow_patterns=[escape(path.name) for path in plan.files],
            commit_message="Files of quantmill squeeze",
        )
    return Result(plan, str(url))


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """What stops an upload, in one line that says how to go on."""
    from huggingface_hub.errors import HTTPError

    left = "what is uploaded stays: the same command goes on"
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(left) from None
    # Of the answers and of the network; of a file that could not be sent; of a card that the hub does not take.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        causes = (str(error), *([str(error.__cause__)] if error.__cause__ else []))
        why = one_line(" ".join(causes))
        raise JobError(f"{repository}: the upload was stopped ({why}); {left}") from None


def _require_login(job: Job) -> None:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        who = job.hub.api.whoami()
    except LocalTokenNotFoundError:
        raise JobError(
            f"{job.repository}: you are not logged in to the hub; run 'hf auth login' first"
        ) from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise JobError(
                f"{job.repository}: the hub does not know your token; log in anew with 'hf auth login'"
            ) from None
        raise JobError(f"{job.repository}: the hub cannot be asked ({one_line(error)})") from None
    owner = job.repository.partition("/")[0]
    own = [who["name"], *(org["name"] for org in who.get("orgs", ()))]
    if owner not in own:
        raise JobError(
            f"{job.repository}: you are {own[0]} and can write to {', '.join(own)}, not to {owner}"
        )
