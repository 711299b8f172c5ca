"""Downloads files of hub repositories to the hub's cache, with errors that say what the user can do.

Knows nothing about what the files are for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub  # it imports its modules on use: they take longer than all of ours
from huggingface_hub import constants

from florence.errors import CheckpointError, RepositoryError

_HUB_ID = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(@(?P<revision>\w[\w./-]*))?(:(?P<folder>\w[\w.-]*(/\w[\w.-]*)*))?"
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder ("": the top) of a hub repository at a revision; None: the default one."""

    owner_and_name: str
    revision: str | None
    folder: str

    @classmethod
    def parse(cls, name: str, revision: str | None = None) -> Repository:
        """Parse `owner/name[@revision][:folder]`. Raises `CheckpointError` for other names, and for two
        revisions."""
        parts = _HUB_ID.fullmatch(name)
        if parts is None:
            raise CheckpointError(
                f"there is no checkpoint {name!r}: expected a directory, a repository of the hub such as "
                "florence-community/Florence-2-large-ft or owner/name:folder, or demo"
            )
        if parts["revision"] and revision:
            raise CheckpointError(f"{name!r} names a revision, and {revision!r} is another: give one of them")
        return cls(parts["repository"], parts["revision"] or revision, parts["folder"] or "")

    @property
    def name(self) -> str:
        """The name without the revision."""
        return f"{self.owner_and_name}:{self.folder}" if self.folder else self.owner_and_name

    def fetch(self, patterns: Sequence[str]) -> Path:
        """Download the folder's files that match these patterns, without subfolders. Returns their
        directory."""
        with _hub_errors(self):
            top = huggingface_hub.snapshot_download(
                self.owner_and_name,
                revision=self.revision,
                allow_patterns=[self._stem + pattern for pattern in patterns],
                ignore_patterns=[f"{self._stem}*/*"],
            )
        return Path(top) / self.folder

    def commit_of(self, directory: Path) -> str:
        """The commit of a directory that `fetch` returned."""
        depth = len(Path(self.folder).parts)
        return directory.parents[depth - 1].name if depth else directory.name

    def list_files(self) -> list[str]:
        """Names of all files in the folder and below it; empty in offline mode."""
        if constants.HF_HUB_OFFLINE:
            return []
        with _hub_errors(self):
            names = huggingface_hub.HfApi().list_repo_files(self.owner_and_name, revision=self.revision)
        return [name.removeprefix(self._stem) for name in names if name.startswith(self._stem)]

    @property
    def _stem(self) -> str:
        return f"{self.folder}/" if self.folder else ""


@contextmanager
def _hub_errors(repository: Repository) -> Iterator[None]:
    """Turn the hub library's errors into a `CheckpointError` that says what the user can do."""
    from huggingface_hub import errors

    name, revision = repository.owner_and_name, repository.revision
    try:
        yield
    except errors.GatedRepoError as error:
        raise RepositoryError(
            f"the repository {name} is gated: accept its terms on its page, then set HF_TOKEN to your token"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RepositoryError(f"the repository {name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise RepositoryError(
            f"the hub ({constants.ENDPOINT}) has no repository {name}, or it is private: "
            "check the spelling, or set HF_TOKEN to a token that may read it"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        unreachable = f"the hub ({constants.ENDPOINT}) can't be reached"
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable
        raise RepositoryError(
            f"{name} can't be loaded: {why}, and the cache ({constants.HF_HUB_CACHE}) has no complete copy. "
            "Without the hub there are two ways out: give a local directory that holds the checkpoint, "
            "or set FLORENCE_MODEL=demo for the small one that comes with florence"
        ) from error
    except Exception as error:  # the hub library's HTTP client, and so its errors, differ between versions
        raise CheckpointError(
            f"the download of {name} from the hub ({constants.ENDPOINT}) did not finish: {error}. "
            "Complete files are kept: run the same command again to fetch the rest"
        ) from error
