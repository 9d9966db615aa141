"""Secrets at rest: encrypted with a key that lies in the home folder, beside the store but never in it."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from skylift.errors import SetupError


class SecretBox:
    """Seals text under `<home>/key`, which only its owner may read; made when first needed. Source: https://cryptography.io/fernet"""

    def __init__(self, home: Path) -> None:
        self._path = home / "key"

    def seal(self, text: str) -> str:
        return self._fernet().encrypt(text.encode()).decode() if text else ""

    def open(self, sealed: str) -> str:
        """Raises SetupError if the key in the home folder is not the one that sealed it."""
        try:
            return self._fernet().decrypt(sealed.encode()).decode() if sealed else ""
        except (InvalidToken, ValueError):
            raise SetupError(f"{self._path} is not the key that the store's secrets were encrypted with",
                             hint="restore the key file, or set the migration up again with its connection string",
                             code="Key") from None

    def _fernet(self) -> Fernet:
        if not self._path.exists():
            self._make()
        return Fernet(self._path.read_bytes())

    def _make(self) -> None:
        """Whole or not at all, and only one of two processes wins: written aside, then linked to its name."""
        aside = self._path.with_name(f"key.{os.getpid()}.{os.urandom(4).hex()}")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(Fernet.generate_key())
        try:
            os.link(aside, self._path)
        except FileExistsError:
            pass
        finally:
            aside.unlink()
