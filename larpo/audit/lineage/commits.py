"""What a commit held: files of the project's folder by their md5, read from Git's objects and not from the folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from larpo.errors import UserError
from larpo.workspace.git import GitError, git_bytes


class Commit:
    """One commit of the repository around `folder`; paths are relative to `folder`."""

    def __init__(self, folder: Path, commit: str):
        self.folder, self.commit = folder, commit
        listed = self._git("ls-tree", "-r", "-z", commit, check=f"commit {commit[:12]} is not in this repository")
        self._blobs: dict[str, str] = {}
        for line in filter(None, listed.split(b"\0")):
            facts, _, name = line.partition(b"\t")
            mode, kind, blob = facts.split()
            if kind == b"blob" and mode != b"120000":
                self._blobs[name.decode("utf-8", "surrogateescape")] = blob.decode()
        self._md5: dict[str, str] = {}

    def _git(self, *arguments: str, check: str, given: bytes | None = None) -> bytes:
        try:
            return git_bytes(self.folder, *arguments, given=given)
        except GitError:
            raise UserError(f"{self.folder}: {check}") from None

    def files(self, path: str) -> dict[str, str]:
        """Name → md5 of a file (its name is then "") or of every file in a folder, relative to it; empty if absent."""
        if path in self._blobs:
            return {"": self._hashes([self._blobs[path]])[0]}
        inside = {n[len(path) + 1 :]: b for n, b in self._blobs.items() if n.startswith(f"{path}/")}
        return dict(zip(inside, self._hashes(list(inside.values())), strict=True))

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None where the commit has none of that name."""
        blob = self._blobs.get(path)
        return None if blob is None else self._git("cat-file", "blob", blob, check="Git objects cannot be read")

    def _hashes(self, blobs: list[str]) -> list[str]:
        new = [b for b in dict.fromkeys(blobs) if b not in self._md5]
        if new:
            found = self._git(
                "cat-file", "--batch", given="\n".join(new).encode() + b"\n", check="Git objects cannot be read"
            )
            for blob in new:
                head, _, found = found.partition(b"\n")
                size = int(head.split()[2])
                self._md5[blob] = hashlib.md5(found[:size]).hexdigest()
                found = found[size + 1 :]
        return [self._md5[b] for b in blobs]
