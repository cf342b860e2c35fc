"""The grid as its YAML has it. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from codo.config.load import plain
from codo.config.sections import Section
from codo.errors import CodoError, nearest
from codo.jobs.ablate.lines import LinedYaml, dotted

Name = Annotated[str, StringConstraints(min_length=1, max_length=80, strip_whitespace=True)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=80)]
"""As it is written: blanks stripped, two could become one."""
Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Design = Literal["one_at_a_time", "ladder", "factorial", "rows"]


REPEAT_STEP = 1000
"""Between the seeds of a cell's repeated transfers (ours)."""


def repeat_seed(seed: int, repeat: int) -> int:
    """Name the seed of a cell's transfer: its own for the first, 0.

    Example:
        >>> [repeat_seed(3, repeat) for repeat in range(3)]
        [3, 1003, 2003]
    """
    return seed + REPEAT_STEP * repeat


class GridData(Section):
    """Unlabelled images of every row, see `PretrainConfig.data`; relative to the working directory."""

    foregrounds: str | None = None
    backgrounds: str | None = None


class Tune(Section):
    """A field of PretrainConfig that is tuned for each row: trials of every value, of which the best is the row's."""

    field: str
    """Dotted, e.g. `optim.lr`."""
    values: tuple[Any, ...] | None = Field(None, min_length=2)
    """The same for every row."""
    factors: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(None, min_length=2)
    """Times what the row has, rounded to two significant digits; in place of `values`."""
    seed: Seed
    """Of the trials; none of the rows' seeds, whose cells would else be those that were chosen for being good."""
    protocol: str | None = None
    """The transfer that the trials are judged by, on its validation images; unset: the first."""

    @model_validator(mode="after")
    def _check(self) -> Tune:
        if (self.values is None) == (self.factors is None):
            raise ValueError("either `values` or `factors`")
        return self


class GridFile(Section):
    """The grid as written; docs/ablate.md explains every key."""

    title: Name
    question: str = ""
    """What the grid asks, in a sentence."""
    base: dict[str, Any] = Field(default_factory=dict)
    """`preset` or `config` (a file), and fields of PretrainConfig."""
    data: GridData = GridData()
    design: Design
    axes: dict[Key, Any] = Field(default_factory=dict)
    """Name -> what the axis sets; see `axes_of`."""
    rows: dict[Key, dict[str, Any]] = Field(default_factory=dict)
    """Of the design `rows`: name -> what the row sets, or `weights: none`."""
    base_row: Name | None = None
    """What to call the row of the base."""
    include_none: bool = False
    """Add a row `random`, which is not pretrained."""
    reference: str | None = None
    """The row that the others are compared to; unset: the base's."""
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    budget: Literal["composites", "epochs"] = "composites"
    """What is equal in all rows: images composed (more views mean fewer epochs), or epochs."""
    tune: Tune | None = None
    """A field that is tuned for each row."""
    transfer: dict[Key, dict[str, Any]] = Field(min_length=1)
    """Name of a protocol -> `preset` and fields of TransferConfig."""
    probes: bool | tuple[str, ...] = False
    """Label-free probes of every pretraining: all, none, or some by name."""
    processes: Count = 1
    """Of each pretraining and transfer (torchrun), each with a GPU of its own."""
    repeats: Count = 1
    """Transfers of each pretraining, whose mean is the cell's; the n-th has the seed `repeat_seed(seed, n)`."""
    metric: Literal["AP", "curve_area"] = "AP"
    """The one that decides."""

    @model_validator(mode="after")
    def _check(self) -> GridFile:
        if self.design == "rows" and (self.axes or not self.rows):
            raise ValueError("rows: the design `rows` needs them, and takes no axes")
        if self.design != "rows" and (self.rows or not self.axes):
            raise ValueError(f"axes: the design `{self.design}` needs them, and takes no rows")
        if self.design == "rows" and self.base_row is not None:
            raise ValueError("base_row: under the design `rows` the base is a row where one is written as `{}`")
        if self.design == "rows" and self.reference is None:
            raise ValueError("reference: the design `rows` needs the name of the row to compare to")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: each once")
        if self.repeats > 1 and max(*self.seeds, self.tune.seed if self.tune is not None else 0) >= REPEAT_STEP:
            raise ValueError(f"seeds: below {REPEAT_STEP} where transfers are repeated, whose seeds those above are")
        if self.tune is not None and self.tune.protocol not in (None, *self.transfer):
            raise ValueError(f"tune: no transfer is called {self.tune.protocol!r}")
        return self


def with_seeds(grid: GridFile, seeds: tuple[int, ...]) -> GridFile:
    """Put seeds in place of a grid's own.

    Raises:
        CodoError: none, one twice, or one below 0.
    """
    try:
        return GridFile.model_validate({**dict(grid), "seeds": seeds})
    except ValidationError as error:
        message = plain(error.errors(include_url=False)[0]).removeprefix("seeds: ")
        raise CodoError(f"seeds {list(seeds)}: {message}") from None


def read_grid(file: Path) -> tuple[GridFile, LinedYaml]:
    """Read a grid and check its form.

    Args:
        file: YAML.

    Raises:
        CodoError: in one line, with the line of the file.
    """
    yaml = LinedYaml(file)
    try:
        return GridFile.model_validate(yaml.tree), yaml
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = tuple(first["loc"])
        message = plain(first)
        if first["type"] == "extra_forbidden":
            near = nearest(str(keys[-1]), GridFile.model_fields)
            raise yaml.error(keys, "no such key" + (f"; did you mean {near}?" if near else "")) from None
        if keys[-1:] == ("[key]",) and isinstance(name := first["input"], str):
            told = f"the name {name!r} is longer than 80 characters" if name else "a name is empty"
            raise yaml.error(keys[:-1], told) from None
        if keys[-1:] == ("[key]",) or first["type"] == "invalid_key":
            name, at = (keys[-1], (str(keys[-1]),)) if keys[-1] != "[key]" else (first["input"], keys[:1])
            told = f"the name {name!r} is no text: YAML reads bare yes, no, on, off and numbers so; quote it"
            raise yaml.error(at, told) from None
        if keys[:1] == ("probes",):
            raise yaml.error(("probes",), "true, false, or a list of names") from None
        if first["type"] == "missing":
            raise yaml.error(keys[:-1], f"{dotted(keys)} is missing") from None
        name, colon, rest = message.partition(": ")
        if not keys and colon and name in GridFile.model_fields:
            raise yaml.error((name,), rest) from None
        raise yaml.error(keys, message) from None
