"""How kept rows lie on disk: open, encrypted, or not at all.

Encrypted is Fernet of the package ``cryptography`` (AES-128 in CBC mode with an HMAC over the whole file);
the key stays in the environment, so that a run's folder alone says nothing of the data.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

from constrained_adapters.errors import ConfigError, MissingExtraError, WorkspaceError
from constrained_adapters.rehearsal.buffer import ReplayBuffer
from constrained_adapters.workspace import atomic_write_bytes

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

KEY_VARIABLE = "CRMA_KEY"
NEW_KEY = "python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"

Privacy = Literal[True, False, "encrypted"]


@final
class KeptFile:
    """One file of a :class:`ReplayBuffer`.

    Args:
        path: Of the file.
        private: False: open. ``"encrypted"``: under the key in the environment variable ``CRMA_KEY``, see
            :func:`cipher`. True: no file is kept, and one that is there is neither read nor left.
    """

    def __init__(self, path: Path, *, private: Privacy) -> None:
        self._path, self._private = path, private

    def read(self) -> ReplayBuffer | None:
        """The buffer, or None where there is none.

        Raises:
            ConfigError: It is encrypted, and there is no key.
            WorkspaceError: The file is damaged, of another version, or not under this key.
        """
        if self._private is True or not self._path.is_file():
            return None
        content = self._path.read_bytes()
        if self._private == "encrypted":
            content = self._decrypted(content)
        return ReplayBuffer.from_bytes(content, where=str(self._path))

    def write(self, buffer: ReplayBuffer) -> None:
        """Replace the file, all or nothing.

        Raises:
            ConfigError: It is to be encrypted, and there is no key.
            WorkspaceError: No space left, or the folder cannot be written.
        """
        if self._private is True:
            self._path.unlink(missing_ok=True)
            return
        content = buffer.to_bytes()
        atomic_write_bytes(self._path, cipher().encrypt(content) if self._private else content)

    def _decrypted(self, content: bytes) -> bytes:
        fernet = cipher()
        from cryptography.fernet import InvalidToken

        try:
            return fernet.decrypt(content)
        except InvalidToken:
            raise WorkspaceError(
                "the kept examples cannot be decrypted",
                got=f"{self._path}: not written under the key in {KEY_VARIABLE}, or damaged",
                expected="the key that the run began with",
                hint="set that key again, or begin anew with --fresh",
            ) from None


def cipher() -> Fernet:
    """The cipher of the key in the environment.

    Raises:
        ConfigError: There is no key, or it is none.
        MissingExtraError: The package ``cryptography`` is not installed.
    """
    try:
        from cryptography.fernet import Fernet
    except ImportError:
        raise MissingExtraError.of("cryptography", "private", "to encrypt kept examples") from None
    key = os.environ.get(KEY_VARIABLE, "")
    try:
        return Fernet(key)
    except ValueError:
        raise ConfigError(
            "kept examples are to be encrypted, and there is no key for it",
            got=f"{KEY_VARIABLE} is " + ("not a key" if key else "not set"),
            expected="32 random bytes in URL-safe base64",
            hint=f"{NEW_KEY} makes one: export {KEY_VARIABLE}=…",
        ) from None
