"""A finished run as one file. The same run makes the same bytes.

    pack.json               what is in it, what was left out, what a reader has to bring
    README.md               how to open it
    ro-crate-metadata.json  the same for machines (RO-Crate)
    repository.bundle       the code with its history
    audit/                  the audit's page and JSON, where there is one
    run/                    dvc.yaml, dvc.lock, params.yaml, every output, data from outside, judges' replies
    checksums.sha256        of all of the above, as `sha256sum -c` reads it

Files stand under their own names and not as DVC's objects, so that a pack can be read without DVC.
"""

from typing import Literal

from pydantic import BaseModel

FORMAT = "larpo-pack 1"
PACK, README, METADATA = "pack.json", "README.md", "ro-crate-metadata.json"
BUNDLE, CHECKSUMS = "repository.bundle", "checksums.sha256"


class LeftOut(BaseModel):
    """An output that is not in the pack; its files' hashes are known all the same."""

    path: str
    md5: str
    size: int | None
    files: dict[str, str]


class Needed(BaseModel):
    """Data from outside that a reader has to bring to run nodes again."""

    path: str
    why: str


class Facts(BaseModel):
    """pack.json. `folder`: the project's in its repository; `unknown_commits`: named by manifests, in no history."""

    format: Literal["larpo-pack 1"] = FORMAT
    commit: str
    folder: str
    left_out: list[LeftOut]
    needed: list[Needed]
    uncommitted: list[str]
    unknown_commits: list[str] = []
