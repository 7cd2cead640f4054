"""The versions that are resident: loaded and freed in the background, pinned by the requests that run on them.

A version never changes after it is loaded. Loading builds a new one beside the others, so running sequences notice
nothing; unloading hides the name at once and frees the weights when the last request on them has ended.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from serving.engine import lora, memory, weights
from serving.engine.cache import new_uid
from serving.engine.model_folder import Manifest, ModelConfig
from serving.engine.turns import Turns
from serving.engine.weights import Checkpoint, Weights

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class UnknownVersion(LookupError):
    """No resident version has this name."""


class Refused(ValueError):
    """The version cannot be loaded or unloaded; the message is one sentence for people."""


class Full(Refused):
    """As many adapters as the limits allow are resident: another fits when one is unloaded."""


@dataclass(eq=False)
class Version:
    """One immutable set of weights under one name."""

    name: str
    sha256: str
    weights: Weights
    path: Path
    created_at: int  # Unix seconds
    n_bytes: int = 0  # of weights that it does not share with the base
    uid: int = field(default_factory=new_uid)
    n_users: int = 0
    is_leaving: bool = False


class Versions:
    """All resident versions by name. `on_free` is told the uid of a version whose weights have just been let go."""

    def __init__(
        self,
        base: Version,
        config: ModelConfig,
        manifest: Manifest,
        checkpoint: Checkpoint,
        root: Path | None,
        max_adapters: int,
        on_free: Callable[[int], None],
        max_bytes: int,
        turns: Turns,
    ) -> None:
        """max_bytes: what the weights of all versions may take together; 0: no limit. turns: with the engine's steps."""
        self.base, self.max_adapters, self.max_bytes = base, max_adapters, max_bytes
        self._config, self._manifest, self._checkpoint = config, manifest, checkpoint
        self._root = root.resolve() if root else None
        self._on_free, self._turns = on_free, turns
        self._resident = {base.name: base}
        self._lock = threading.Lock()
        self._is_closing = False
        self._loading = threading.Lock()  # one at a time: each needs a core and the memory of a copy

    def names(self) -> list[Version]:
        """Versions that new requests may use, the base first."""
        with self._lock:
            return [version for version in self._resident.values() if not version.is_leaving]

    @property
    def n_bytes(self) -> int:
        """Weights of all versions, those included that are leaving and still used."""
        with self._lock:
            return sum(version.n_bytes for version in self._resident.values())

    def acquire(self, name: str) -> Version:
        """Pin a version for one request; each call needs one `release`. Raises UnknownVersion."""
        with self._lock:
            version = self._resident.get(name)
            if version is None or version.is_leaving:
                raise UnknownVersion(f"The model {name!r} is not loaded.")
            version.n_users += 1
            return version

    def share(self, version: Version) -> Version:
        """One more pin on a version that is pinned already, even if its name has been hidden since."""
        with self._lock:
            version.n_users += 1
            return version

    def release(self, version: Version) -> None:
        with self._lock:
            version.n_users -= 1
            is_free = self._free_if_unused(version)
        if is_free:
            self._on_free(version.uid)

    def load(self, name: str, path: str, now: int) -> Version:
        """Make the adapter folder `path` resident as `name`, now in Unix seconds. Raises Refused or InvalidAdapter.

        Slow: call it from a background thread; beside steps it takes turns with them. Loading a resident name again is fine if
        the file is the same.
        """
        if not NAME.fullmatch(name) or name == self.base.name:
            raise Refused("lora_name must be 1 to 128 letters, digits and . _ : - and not the base model's name.")
        folder = self._folder(path)
        with self._loading:
            self._check_place(name)  # before anything is read: who waits for one asks again and again
            try:
                return self._load(name, folder, now)
            finally:
                self._turns.end()

    def unload(self, name: str) -> None:
        """Hide the name from new requests; free the weights when the last request has ended. Raises UnknownVersion."""
        with self._lock:
            version = self._resident.get(name)
            if version is None or version.is_leaving:
                raise UnknownVersion(f"The adapter {name!r} is not loaded.")
            if version is self.base:
                raise Refused("The base model cannot be unloaded.")
            version.is_leaving = True
            is_free = self._free_if_unused(version)
        if is_free:
            self._on_free(version.uid)

    def close(self) -> None:
        """Let a load that is going on end early, with Refused."""
        self._is_closing = True

    def _load(self, name: str, folder: Path, now: int) -> Version:
        adapter = lora.read(folder, self._config, self._manifest, self._go_on)
        if version := self._loaded_before(name, adapter.sha256):
            return version
        n_bytes = memory.of_version(self._config, adapter, self._checkpoint.dtype.itemsize)
        self._check_room(n_bytes)
        version = Version(name, adapter.sha256, self._merge(adapter), folder, now, n_bytes)
        with self._lock:
            self._resident[name] = version
        return version

    def _merge(self, adapter: lora.Lora) -> Weights:
        try:
            return weights.merge(self.base.weights, self._checkpoint, adapter, self._go_on)
        except (MemoryError, RuntimeError) as error:
            if not memory.is_exhausted(error):
                raise
            raise Full("The machine has no memory for this adapter; unload another first.") from error

    def _go_on(self) -> None:
        """Between two parts of a load: waits for its turn. Raises Refused."""
        self._turns.wait()
        if self._is_closing:
            raise Refused("The engine is shutting down.")

    def _loaded_before(self, name: str, sha256: str) -> Version | None:
        """The resident version of this name, taken back if it was leaving. Raises Refused if it is another file."""
        with self._lock:
            version = self._resident.get(name)
            if version and version.sha256 != sha256:
                raise Refused(f"{name!r} is loaded with other weights; versions never change, use a new name.")
            if version:
                version.is_leaving = False
            return version

    def _check_place(self, name: str) -> None:
        with self._lock:
            if name not in self._resident and len(self._resident) - 1 >= self.max_adapters:
                raise Full(f"{self.max_adapters} adapters are loaded, which is the limit; unload one first.")

    def _check_room(self, n_bytes: int) -> None:
        if self.max_bytes and self.n_bytes + n_bytes > self.max_bytes:
            raise Full(
                f"This adapter needs {n_bytes / 2**20:.0f} MiB, of {self.max_bytes / 2**20:.0f} MiB for all weights "
                f"{self.n_bytes / 2**20:.0f} are taken; unload one first."
            )

    def _free_if_unused(self, version: Version) -> bool:
        is_free = version.is_leaving and version.n_users == 0 and self._resident.get(version.name) is version
        if is_free:
            del self._resident[version.name]
        return is_free

    def _folder(self, path: str) -> Path:
        """The adapter folder, which must lie directly below the root and be no symbolic link. Raises Refused."""
        if self._root is None:
            raise Refused("This engine was started without --adapters, so it loads none.")
        try:
            folder = self._root / path
            is_inside = folder.parent.resolve() == self._root and folder.name not in ("", ".", "..")
            if is_inside and folder.is_dir() and not folder.is_symlink():
                return folder
        except (ValueError, OSError):  # a null byte, a name too long
            pass
        raise Refused("lora_path must be a folder directly below the engine's adapters folder.")
