"""What jobs share, a module each.

A run: its folder (`record`), who holds it (`lock`), going on with it (`repeat`, `checkpoint`), its `weights_file`.
Where it runs: `hardware`, `world` (several processes), `seed`, `sgd`, `loading`, `interrupt`.
What it shows: `console`, `data_wait`, `events` (TensorBoard).
Files below all of them: `files`, `caching`.
"""
