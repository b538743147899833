"""Data sets of the hub by name: ``hf:org/name``, ``hf:org/name:split``,
``hf:org/name@config:split``, ``hf:org/name:split[:1000]``.

``datasets`` streams a data set once, row by row, into a copy under the hub's cache folder
(``HF_HOME``). Every later run reads the copy, needs no network and sees the same rows. Code of a
data set is never run, and a folder of this machine is never read in place of the hub. To get a
newer state of the data set, delete the copy.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefloop.base.console import counted, progress, say, shortened
from prefloop.data.raw import cache_home, write_copy
from prefloop.errors import ConfigError, DataError

_ADDRESS = re.compile(
    r"(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<config>[\w.+-]+))?(?::(?P<split>[\w.-]+)(?:\[:(?P<first>\d+)\])?)?"
)
FORMS = "hf:org/name, hf:org/name:split, hf:org/name@config:split or hf:org/name:split[:1000]"


def cache_folder() -> Path:
    """The folder for copies of the hub's data sets."""
    return cache_home() / "datasets"


def copy_of(address: str, fetch: bool) -> Path | None:
    """The local copy of ``org/name@config:split``. Without ``fetch`` only a copy that exists
    already, else ``None``.

    Raises ``ConfigError`` for a wrong address, and ``DataError`` where the rows cannot be fetched.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or match["first"] == "0":
        raise ConfigError(f"'hf:{address[:200]}' is no data set of the hub: give {FORMS}")
    name, config, split, first = match.group("name", "config", "split", "first")
    folder = name.replace("/", "--") + (f"@{config}" if config else "")
    file = f"{split or 'only-split'}{f'-first-{first}' if first else ''}.jsonl"
    copy = cache_folder() / folder / file
    if copy.is_file():
        return copy
    if not fetch:
        return None
    rows = itertools.islice(_rows(address, name, config, split), int(first) if first else None)
    with progress(f"fetch hf:{address}", int(first or 0), "row") as advance:
        count = write_copy(copy, _noted(rows, advance))
    say(f"  hf:{address}: {counted(count, 'row')} kept in {copy}", "dim")
    return copy


def _noted(rows: Iterable[dict[str, Any]], advance: Any) -> Iterable[dict[str, Any]]:
    for row in rows:
        advance()
        yield row


def _rows(
    address: str, name: str, config: str | None, split: str | None
) -> Iterable[dict[str, Any]]:
    """The rows of one split, fetched as they are needed."""
    import datasets
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        loaded: Any = datasets.load_dataset(_on_the_hub(name), config, split=split, streaming=True)
        if split is None:
            splits = list(loaded)
            if len(splits) != 1:
                raise DataError(
                    f"hf:{address} has the splits {', '.join(map(str, splits[:20]))}: name one,"
                    f" such as hf:{address}:{splits[0]}"
                )
            loaded = loaded[splits[0]]
        # Pictures and sounds stay bytes, which a row may not hold. Decoding them would need more
        # packages.
        yield from loaded.decode(False) if hasattr(loaded, "decode") and loaded.features else loaded
    except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError):
        raise DataError(
            f"the hub has no data set '{name}' that you may read: check the name; for a gated one"
            " accept its terms and log in (hf auth login)"
        ) from None
    except (ConnectionError, TimeoutError) as error:
        raise DataError(_offline(address, name, error)) from None
    except (ValueError, RuntimeError, OSError, datasets.exceptions.DatasetsError) as error:
        if _is_network(error):
            raise DataError(_offline(address, name, error)) from None
        raise DataError(
            f"hf:{address} cannot be read: {shortened(' '.join(str(error).split()), 400)}"
        ) from None


def _on_the_hub(name: str) -> str:
    """The name that ``datasets`` understands as the hub's data set and as nothing else.

    ``datasets`` prefers a folder of that name in the working directory. It takes a name without an
    owner for a loader (``json``) or for its own copy of any folder so called, so the hub is asked
    for the full name. Errors of the hub are passed on.
    """
    if "/" not in name:
        from huggingface_hub import HfApi

        name = str(HfApi().dataset_info(name).id)
    return f"hf://datasets/{name}" if "/" not in name or Path(name).exists() else name


def _is_network(error: BaseException) -> bool:
    import httpx

    return isinstance(error, httpx.HTTPError) or "offline" in type(error).__name__.lower()


def _offline(address: str, name: str, error: BaseException) -> str:
    return (
        f"hf:{address} is not on this machine yet, and the hub cannot be reached"
        f" ({shortened(str(error), 160)}): connect, or unset HF_HUB_OFFLINE, for the first run; or"
        f" fetch its files elsewhere (hf download --repo-type dataset {name}) and name their folder"
    )
