"""A model of transformers in a folder here or on the hub."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimrun.ops.errors import Unavailable, first_line
from slimrun.ops.model.base import Model, Outline, check_dtype
from slimrun.ops.model.fingerprint import folder_hash, foreign_code, read_object
from slimrun.ops.model.known import BIASES, known_outline, plain_config
from slimrun.ops.model.outline import code_hint, description_key, outline_of, parameter_dtype
from slimrun.ops.weights.folder import NoWeights, check_folder, check_kind, strays

WAY_OUT = (
    "; give a folder (model.path=DIR; ModelScope fetches one: modelscope download --model ID --local_dir DIR), or "
    "reach the hub, through a mirror too (HF_ENDPOINT=URL), and not with HF_HUB_OFFLINE=1"
)


@dataclass(frozen=True)
class Pretrained(Model):
    """`path` is a folder, or a hub id (owner/name) at a `revision`."""

    name: str
    path: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and what is allowed."""
        check_dtype(self.dtype)
        if not self.path:
            raise ValueError("path=null names no model; give a folder or a hub id: model=hf model.path=DIR_OR_HUB_ID")

    def origin(self) -> str:
        """Where the weights come from, for a person."""
        return str(self.folder() or self.path)

    def folder(self) -> Path | None:
        """The folder that `path` means, None of a hub id; Unavailable when it means one that is not there."""
        path = Path(str(self.path)).expanduser()
        if path.is_dir():
            return path
        if path.is_absolute() or len(path.parts) != 2 or str(self.path).startswith((".", "~")) or path.exists():
            raise Unavailable(f"model.path={self.path}: no such folder; give a folder or a hub id (owner/name)")
        return None

    def fetch(self) -> Path | str:
        """The folder or hub id that weights are loaded from."""
        return self.folder() or str(self.path)

    def config(self) -> Any:
        """The transformers config; Unavailable says in one line why there is none."""
        from slimrun.ops.model.fit import quiet

        if folder := self.folder():
            check_kind(folder)
        if folder and read_object(folder / "config.json").get("model_type") in BIASES:
            from transformers import AutoConfig  # ours knows ChatGLM2 too, whose code takes seconds to import
        else:
            from slimrun.ops.model.auto import AutoConfig
        try:
            with quiet():
                return AutoConfig.from_pretrained(
                    self.fetch(), revision=self.revision, trust_remote_code=self.trust_remote_code
                )
        except Exception as error:  # the hub client, the json reader and custom code each raise their own
            told = first_line(error).rstrip(".")
            raise Unavailable(f"model.path={self.path}: {told}{_config_hint(error)}") from error

    def sketch(self) -> Any:
        """As config.json says it, where that tells all that is asked of the config of a folder without weights."""
        folder = self.folder()
        if folder is None or self.trust_remote_code:
            return self.config()
        check_kind(folder)
        return plain_config(read_object(folder / "config.json")) or self.config()

    def tokenizer(self) -> Any:
        """The transformers tokenizer; Unavailable says in one line why it cannot be used."""
        from slimrun.ops.model.tokenizer import load_tokenizer

        return load_tokenizer(self.fetch(), self.revision, self.trust_remote_code)

    def outline(self, formats: Collection[str]) -> Outline:
        """The outline; Unavailable says in one line why the model cannot be loaded."""
        folder = self.folder()
        if folder is None:
            return outline_of(self)
        try:
            outline = outline_of(self, check_folder(folder, formats))
        except NoWeights as error:
            return replace(outline_of(self, told=self._told), missing=str(error))
        return replace(outline, notes=(*outline.notes, *strays(folder, formats)))

    def _told(self) -> Outline | None:
        """The outline where the config alone tells it, for a folder whose weights are not here."""
        if self.trust_remote_code:
            return None
        config = self.sketch()
        return known_outline(config, parameter_dtype(self, config))

    def fingerprint(self, *, read: bool = True) -> str | None:
        """Hash of a folder's content, or of a hub id's commit."""
        folder, known = self.folder(), ""
        if folder is not None:
            content = folder_hash(folder, self.cache, read=read, code=self.trust_remote_code)
            if content is None:
                return None
            known = content
        if folder is None or (self.trust_remote_code and foreign_code(folder)):
            if not read:
                return None
            known = " ".join([*([known] if known else []), *self._commits()])
        return f"{known}:{self.dtype}"

    def key(self) -> str | None:
        """Hash of the folder's files but the weights; None of a hub id, or of code in another repository."""
        folder = self.folder()
        unseen = folder is None or (self.trust_remote_code and foreign_code(folder))
        return None if folder is None or unseen else description_key(self, folder)

    def _commits(self) -> list[str]:
        """`owner/name@commit` of every repository that the model's files come from, beside its folder.

        Those are the hub id itself, and with `trust_remote_code` the repositories whose code the model runs.
        """
        from transformers.utils.hub import extract_commit_hash

        commits, path = [], self.fetch()
        if isinstance(path, str):
            commits.append(f"{path}@{getattr(self.config(), '_commit_hash', None)}")
        if self.trust_remote_code:
            files = [_cached(str(path), name, self.revision) for name in ("config.json", "tokenizer_config.json")]
            for folder in sorted({file.parent for file in files if file is not None}):
                for repository, name in foreign_code(folder):
                    code = _cached(repository, name, None)
                    commits.append(f"{repository}@{extract_commit_hash(str(code), None)}")
        return commits


def _config_hint(error: BaseException) -> str:
    """What to do about a config that cannot be read: the hub's and the file system's errors tell no way out."""
    return code_hint(error) or (WAY_OUT if isinstance(error, OSError) else "")


def _cached(repository: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or hub id, fetched first if it must be; None when there is none."""
    from transformers.utils.hub import cached_file

    file = cached_file(repository, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if file is None else Path(file)
