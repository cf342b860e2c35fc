"""The images, annotations and labels that a grid's jobs read, by their hashes; missing data refused with its line."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import file_digest, sha256
from pathlib import Path

from codo.config.pretrain import PretrainConfig
from codo.config.transfer import TransferConfig
from codo.data.coco import split_paths
from codo.data.files import data_fingerprint
from codo.data.images import list_images
from codo.data.shards import is_shards
from codo.errors import CodoError
from codo.jobs.ablate.jobs import digest
from codo.jobs.ablate.lines import Keys
from codo.jobs.ablate.resolve import Grid, ResolvedRow
from codo.jobs.pretrain.build import check_enough, find_sources
from codo.jobs.probe.images import find_manifest
from codo.jobs.transfer.data import load_data
from codo.weights import weights_path


class DataHashes:
    """Names the images and annotations that configs read; each data set is looked at once."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._known: dict[str, str] = {}

    def of_pretrain(self, row: ResolvedRow) -> str:
        """Hash the images of a row's pretraining, and the weights that it begins with.

        Raises:
            CodoError: the images are missing or too few; with the line.
        """
        config = without_unused_backgrounds(row.pretrain)
        data = config.data.model_copy(update={"limit": None})
        key = digest(data.model_dump(), config.uses_backgrounds)
        try:
            if key not in self._known:
                sources = find_sources(config.model_copy(update={"data": data}))
                self._known[key] = f"{sources.fingerprint} {len(sources.foregrounds)}"
            name, _, count = self._known[key].partition(" ")
            check_enough(min(int(count), config.data.limit or int(count)), config)
        except CodoError as error:
            field_named = next((n for n in ("foregrounds", "backgrounds") if str(error).startswith(f"data.{n}")), None)
            keys = _keys(field_named, row) if field_named else self._keys_of(str(error), row)
            raise self.grid.yaml.error(keys, str(error)) from None
        return name if config.model.init is None else digest(name, self._of_file(config.model.init))

    def _of_file(self, weights: str) -> str:
        if weights not in self._known:
            with open(weights_path(weights), "rb") as file:
                self._known[weights] = file_digest(file, "sha256").hexdigest()
        return self._known[weights]

    def of_transfer(self, config: TransferConfig, protocol: str) -> str:
        """Hash the images and annotations of a protocol.

        Raises:
            CodoError: they are missing or broken; with the line.
        """
        key = digest(config.data.model_dump(exclude={"fraction"}), config.detector)
        if key not in self._known:
            try:
                whole = config.model_copy(update={"data": config.data.model_copy(update={"fraction": 1.0})})
                self._known[key] = load_data(whole).fingerprint
            except CodoError as error:
                own = "data" in self.grid.file.transfer[protocol]
                keys = ("transfer", protocol, "data") if own else ("data", "backgrounds")
                raise self.grid.yaml.error(keys, str(error)) from None
        return self._known[key]

    def of_probes(self) -> str:
        """Hash what the probes look at: images, and labels; the built-in sample data have the code's version."""
        data = self.grid.base.data
        for name in ("foregrounds", "backgrounds"):
            if (place := getattr(data, name)) is not None and is_shards(place):
                text = f"{place}: probes look at folders of images, these are shards; set probes: false"
                raise self.grid.yaml.error(("data", name), text)
        paths: Sequence[Path] = ()
        labels = None
        if data.foregrounds is not None:
            paths = list_images(Path(data.foregrounds))
            manifest = find_manifest(Path(data.foregrounds))
            labels = sha256(manifest.read_bytes()).hexdigest() if manifest is not None else None
        if data.backgrounds is not None:
            root = Path(data.backgrounds)
            paths = [*paths, *(split_paths(root, "val") or list_images(root))]
        return digest(data_fingerprint(paths), labels) if paths else ""

    def _keys_of(self, message: str, row: ResolvedRow) -> tuple[str | int, ...]:
        for name in ("foregrounds", "backgrounds"):
            if getattr(row.pretrain.data, name) and str(getattr(row.pretrain.data, name)) in message:
                return _keys(name, row)
        return row.plan.keys


def _keys(name: str, row: ResolvedRow) -> Keys:
    own = [change.keys for change in row.plan.changes or () if change.field == f"data.{name}"]
    return own[0] if own else ("data", name)


def without_unused_backgrounds(config: PretrainConfig) -> PretrainConfig:
    """Leave out the backgrounds that a config neither pastes nor probes on, so that it does not depend on them."""
    if config.uses_backgrounds or config.run.probe_every or config.data.foregrounds is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"backgrounds": None})})
