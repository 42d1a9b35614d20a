"""Replacing a whole directory at once: readers see the old content or the new one, never a mixture, whatever kills the writer.

The new content is written to a hidden directory beside the target (`.NAME.saving-*`), flushed, and then exchanged with the target in
one system call (`renameat2`, Linux). File systems that cannot exchange get two renames; a kill between them leaves the old content
whole under `.NAME.previous-*`. A target directory that is itself a mount point cannot be renamed and is refused.

Staging directories are locked while they are written. What a killed writer left behind is removed by the next one that saves to the
same name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from openglm.errors import CheckpointError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_STALE_AFTER_S = 60.0  # covers the moment between creating a staging directory and locking it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def replaced_directory(target: Path, *, carry_over: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """Yield an empty directory that becomes `target` when the block ends, and vanishes when it raises.

    Entries of an existing target for which `carry_over(name)` holds are kept (hard links where possible). Whoever writes files in the
    block flushes them. A full disk or another `OSError` becomes a `CheckpointError`; the target is then as it was.
    """
    target = target.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.ismount(target):
            raise CheckpointError(f"{target}: is a mount point and cannot be replaced; save to a directory inside it")
        _remove_stale(target)
        staging = target.with_name(f".{target.name}.saving-{secrets.token_hex(6)}")
        staging.mkdir()
        with _locked(staging) as descriptor:
            try:
                yield staging
                if target.exists():
                    _carry_over(target, staging, carry_over or (lambda _: False))
                os.fsync(descriptor)
                _swap(staging, target)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)  # the first error is the one to report
                raise
            _sync_directory(target.parent)
    except OSError as error:
        reason = "the disk (or quota) is full" if error.errno in _FULL else error.strerror or str(error)
        raise CheckpointError(f"{target}: cannot be saved: {reason}; what was there before is unchanged") from error
    _discard(staging)


def interrupted_save(target: Path) -> Path | None:
    """Where a save that was killed between two renames left the previous content of the absent `target`, if anywhere."""
    return next(iter(sorted(target.parent.glob(f".{target.name}.previous-*"))), None)


def _swap(staging: Path, target: Path) -> None:
    """Put `staging` in the place of `target`; a previous target ends up under the name of `staging`."""
    if not target.exists() or not any(target.iterdir()):
        staging.rename(target)
        return
    shutil.copymode(target, staging)
    if _exchange(staging, target):
        return
    previous = target.with_name(f".{target.name}.previous-{secrets.token_hex(6)}")
    target.rename(previous)
    try:
        staging.rename(target)
    except OSError:
        previous.rename(target)
        raise
    previous.rename(staging)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories atomically; False where the system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _carry_over(source: Path, destination: Path, wanted: Callable[[str], bool]) -> None:
    for path in sorted(source.iterdir()):
        copy = destination / path.name
        if not wanted(path.name) or copy.exists():
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, copy, symlinks=True, copy_function=_link)
        else:
            _link(path, copy)


def _link(source: str | Path, destination: str | Path) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:  # file systems without hard links
        shutil.copy2(source, destination, follow_symlinks=False)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    """Remove staging directories whose writer is gone: nobody holds their lock."""
    for path in target.parent.glob(f".{target.name}.saving-*"):
        try:
            if time.time() - path.stat().st_mtime < _STALE_AFTER_S:
                continue
            with _locked(path):
                _discard(path)
        except OSError:  # locked: another save to the same name is under way; or just removed by it
            continue


def _discard(path: Path) -> None:
    if not path.exists():
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        _log.warning("%s is no longer needed and could not be removed: %s", path, error)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
