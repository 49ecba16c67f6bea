"""Addresses of tracking stores: which one is in force, what it names, and how it is shown: never with its password.

A password is used where a store is opened and nowhere else. `conceal` takes it off the command line before Hydra sees
it and leaves the whole address in MLFLOW_TRACKING_URI, which the jobs of every launcher inherit; so whatever is
written or printed knows the masked address only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from shlex import quote as shell_quoted
from urllib.parse import quote, unquote, urlsplit

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

KEY, VARIABLE, MASK = "tracking.uri", "MLFLOW_TRACKING_URI", "***"
PASSWORDS = (
    (re.compile(r"(://[^\s:/@]*:)\S*@"), rf"\1{MASK}@"),
    (re.compile(r"(https?://)[^\s:/@]+@"), rf"\1{MASK}@"),  # a token in the place of the user
    (re.compile(r"([?&](?:password|passwd|pwd|token|sslpassword|odbc_connect)=)[^\s&'\"]+", re.I), rf"\1{MASK}"),
)
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "file")
SQLITE = re.compile(r"sqlite(\+\w+)?:")
SQLITE_START = b"SQLite format 3\0"


def masked(text: str) -> str:
    """The text with *** for the password of every address in it."""
    for pattern, shown in PASSWORDS:
        text = pattern.sub(shown, text)
    return text


def conceal(overrides: Sequence[str]) -> list[str]:
    """The overrides with the password of `tracking.uri` masked; the whole address is in the environment from now on."""
    return [_concealed(item) if item.lstrip("+").startswith(f"{KEY}=") else item for item in overrides]


def override_of(uri: object) -> str | None:
    """The override that masks an address which a file or an interpolation has given; None when it needs none."""
    if not isinstance(uri, str) or masked(uri) == uri:
        return None
    return _hand_over(KEY, uri)


def in_force(uri: str | None) -> str:
    """The whole address, that of a SQLite file absolute; null: MLFLOW_TRACKING_URI's, else mlflow.db here."""
    told = os.environ.get(VARIABLE, "")
    if not uri:
        uri = told or sqlite_uri(Path.cwd() / "mlflow.db")
    elif MASK in uri and masked(told) == uri:
        uri = told
    if (file := database_file(uri)) and not uri.partition(":///")[2].startswith(("/", "file:")):
        query = uri.partition("?")[2]
        uri = sqlite_uri(file) + (f"?{query}" if query else "")
    return uri


def sqlite_uri(file: Path) -> str:
    """The address of a SQLite file. SQLAlchemy takes a ? for its end: 2.1 wants it percent-encoded, 2.0 by SQLite."""
    if not {"?", "%"} & set(str(file)):
        return f"sqlite:///{file}"
    from sqlalchemy.engine import URL, make_url  # half a second

    # with the driver's name MLflow does not make the folder that the encoded name seems to have
    uri = URL.create("sqlite+pysqlite", database=str(file)).render_as_string()
    return uri if make_url(uri).database == str(file) else f"sqlite+pysqlite:///file:{quote(str(file))}?uri=true"


def database_file(uri: str) -> Path | None:
    """The file of a SQLite address, absolute; None for every other store."""
    if not SQLITE.match(uri):
        return None
    _, slashes, name = uri.partition(":///")
    if not slashes or name in ("", ":memory:"):
        raise ValueError("names no file; write sqlite:///FILE")
    if {"?", "%"} & set(name):
        from sqlalchemy.engine import make_url

        url = make_url(uri)
        name = str(url.database)
        if name.startswith("file:") and "uri" in url.query:
            name = unquote(urlsplit(name).path)
    return Path(name).absolute()


def check(uri: str | None) -> None:
    """ValueError, one line with key and value, on what can be seen to be wrong in an address before it is asked."""
    key = KEY if uri else VARIABLE
    try:
        whole = in_force(uri)
        scheme, colon, _ = whole.partition(":")
        known = [*SCHEMES, *(plugin.name for plugin in entry_points(group="mlflow.tracking_store"))]
        if whole != "databricks" and (not colon or scheme.partition("+")[0] not in known):
            raise ValueError(f"has no known scheme; allowed: {', '.join(known)}, e.g. sqlite:///FILE")
        if scheme in ("http", "https") and not (urlsplit(whole).hostname and urlsplit(whole).port != 0):
            raise ValueError(f"names no server; write {scheme}://HOST:PORT")
        if MASK in whole:
            raise ValueError(
                f"has its password masked; write it in place of {MASK}, or the whole address in {VARIABLE}"
            )
        if file := database_file(whole):
            _check_file(file)
    except ValueError as error:
        value = uri or os.environ.get(VARIABLE) or in_force(None)
        raise ValueError(f"{key}={masked(value)}: {error}") from None


def ui_command(address: str) -> str:
    """The command that opens the UI of a store, by its masked address."""
    opener = "open" if address.startswith("http") else "mlflow ui --backend-store-uri"
    return f"{opener} {shell_quoted(address)}"


def _check_file(file: Path) -> None:
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name a file in it, e.g. {file / 'mlflow.db'}")
    if file.is_file() and os.access(file, os.R_OK):
        with file.open("rb") as stream:
            start = stream.read(len(SQLITE_START))
        if start not in (b"", SQLITE_START):
            raise ValueError(f"{file} is no SQLite database; move it away, or name another file")


def _concealed(item: str) -> str:
    if masked(item) == item:
        return item
    try:
        override = OverridesParser.create().parse_override(item)
    except OverrideParseException:
        return masked(item)  # Hydra says what is wrong with it
    if override.is_sweep_override():  # one address fits into the environment, so `check` says that this one is masked
        return masked(item)
    return _hand_over(item.partition("=")[0], str(override.value()))


def _hand_over(key: str, uri: str) -> str:
    os.environ[VARIABLE] = uri = re.sub(r"\s", "%20", uri)
    return "{}='{}'".format(key, masked(uri).replace("'", "\\'"))
