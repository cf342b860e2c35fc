"""One transfer, several seeds: each in a folder of its own, and what they come to together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from codo.config.load import DATA_PATHS, MOVABLE, differences, load_run_config, told
from codo.config.transfer import TransferConfig
from codo.errors import CodoError
from codo.jobs.transfer.finish import TransferResult
from codo.jobs.transfer.plot import plot_curves
from codo.jobs.transfer.run import Start, resume, transfer
from codo.runs.files import write_json
from codo.runs.record import read_json
from codo.runs.repeat import bring_to_end
from codo.runs.world import World

NEEDED = (
    *("seed", "detector", "protocol", "weights.source", "steps", "data.name", "data.fraction"),
    *("data.whole_fingerprint", "metrics", "curve", "curve_area", "train_seconds"),
)
"""What the summary.json of a seed must have."""


def transfer_seeds(
    config: TransferConfig,
    seeds: Sequence[int],
    out: str | Path,
    on_start: Callable[[Start], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> TransferResult:
    """Run `transfer` once a seed, in `OUT/seed-N`; a second call keeps what is finished and goes on with the rest.

    With a share of the training images (`data.fraction`), each seed draws its own. Writes seeds.json (mean and sample
    standard deviation, n - 1, of every number), curve.png and curve.svg. A stopped seed goes on on this call's device.

    Args:
        config: all settings; its own seed is not used.
        seeds: each once.
        out: the folder of all.
        on_start: as for `transfer`, called for every seed that runs.
        say: told which seed is next.

    Returns:
        The folder, and what seeds.json says.

    Raises:
        CodoError: `out` holds runs of another config, weights or data; several processes; as `transfer`.
        Interrupted: as `transfer`; the same call goes on.

    Example:
        >>> codo.transfer_seeds(codo.load_transfer_config(), [0, 1, 2], "runs/three")  # doctest: +SKIP
    """
    out = Path(out)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise CodoError(f"seeds: {', '.join(map(str, seeds)) or 'none'}; one or more numbers from 0 on, each once")
    if World.of_environment().size > 1:
        raise CodoError(
            f"seeds: one process at a time; with torchrun, run each by itself (--seed {seeds[0]} --out "
            f"{out / f'seed-{seeds[0]}'}), and at last --seeds without torchrun, which collects them"
        )
    if out.is_file() or (out / "config.yaml").exists():
        raise CodoError(
            f"--out {out} is a {'file' if out.is_file() else 'run'}; name a folder for the runs of all seeds"
        )
    configs = {seed: config.model_copy(update={"seed": seed}) for seed in seeds}
    folders = {seed: out / f"seed-{seed}" for seed in seeds}
    for seed in seeds:
        _check_same(folders[seed], configs[seed])
    summaries = []
    for seed in seeds:
        say(f"seed {seed} -> {folders[seed]}")
        start = partial(transfer, configs[seed], folders[seed], on_start)
        anew = {f"data.{name}": value for name, value in config.data if name in DATA_PATHS}
        anew |= {f"run.{name}": value for name, value in config.run}
        bring_to_end(folders[seed], start, partial(resume, folders[seed], anew, on_start), say)
        summaries.append(read_json(folders[seed] / "summary.json", NEEDED))
        _check_one_kind(summaries)
    together = summarise(summaries)
    write_json(out / "seeds.json", together)
    curves = {f"seed {s['seed']}": s["curve"] for s in summaries}
    first = summaries[0]
    plot_curves(out, curves, f"{first['data']['name']} val, {first['protocol']}, weights {first['weights']['source']}")
    return TransferResult(out, together)


def summarise(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put the summaries of several seeds together.

    Returns:
        `seeds`, what they have in common, and for `metrics`, `mask_metrics` (of masks) and `curve_area` the `mean`, the
        sample standard deviation `std` (None for one), the count `n` and the `values`; None is not counted.
    """
    first = summaries[0]
    groups = [group for group in ("metrics", "mask_metrics") if group in first]
    return {
        "kind": "transfer seeds",
        "seeds": [s["seed"] for s in summaries],
        **{key: first[key] for key in ("detector", "protocol", "weights", "steps")},
        "data": first["data"]["name"],
        "fraction": first["data"]["fraction"],
        **{group: {name: _spread([s[group][name] for s in summaries]) for name in first[group]} for group in groups},
        "curve_area": _spread([s["curve_area"] for s in summaries]),
        "train_seconds": _spread([s["train_seconds"] for s in summaries]),
    }


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "n": len(known),
        "values": list(values),
    }


def _check_one_kind(summaries: Sequence[dict[str, Any]]) -> None:
    """Refuse seeds of different weights or data, which the same paths may hold at different times."""
    seen = {
        "weights": [s["weights"].get("sha256") for s in summaries],
        "data": [s["data"]["whole_fingerprint"] for s in summaries],
    }
    for what, found in seen.items():
        other = [str(s["seed"]) for s, mark in zip(summaries, found, strict=True) if mark != found[0]]
        if other:
            raise CodoError(
                f"seeds: the {what} of seed {', '.join(other)} are not those of seed {summaries[0]['seed']}; they "
                "changed between the runs: name another --out, or remove the older runs"
            )


def _check_same(folder: Path, config: TransferConfig) -> None:
    """Refuse a folder with a run of another config; where and how it executes, and where its data lie, may differ."""
    if not (folder / "config.yaml").is_file():
        return
    before = load_run_config(TransferConfig, folder)
    free = ("run.", *MOVABLE)
    changed = {key: pair for key, pair in differences(before, config).items() if not key.startswith(free)}
    if changed:
        raise CodoError(f"{folder} holds a run of another config ({told(changed)}); name another --out")
