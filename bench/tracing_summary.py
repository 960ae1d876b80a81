"""The tracing benchmark in figures: medians of interleaved rounds, what was aimed at, and the table of it."""

from collections.abc import Sequence
from statistics import median
from typing import Any

BOUND = 5e-6  # parity: largest difference on the same attention kernel, of the map's maximum
KEPT = 16 * 2**20  # bytes that recipe `daam` may keep
SPARE = 64 * 1024  # bytes of bookkeeping beside rows x cells x 4 that recipe `mean` may keep
VISIBLE = 4 * 2**20  # bytes: what a process grows by unseen


def digest(found: list[dict[str, Any]], title: str, ways: Sequence[str], steps: int) -> dict[str, Any]:
    """Medians over rounds, each against the plain run of its own round."""
    counts = next((row["ways"] for row in found if row["round"] == 0), {})
    rounds = [row["ways"] for row in found if row["round"]]
    if not counts or not rounds:
        raise ValueError(f"{title} was not measured; run this command without parts")
    store, plain = counts["query store"], counts["plain"]
    made: dict[str, Any] = {
        "rounds": len(rounds),
        "title": title,
        "steps": steps,
        "rows": store["rows"],
        "cells": store["cells"],
        "plain": {
            "call_s": median(row["plain"]["call"] for row in rounds),
            "attention_percent": median(100 * row["plain"]["attention"] / row["plain"]["call"] for row in rounds),
            "flops_a_step": plain["flops"],
            "bytes_a_step": plain["bytes"],
            "floor_percent": 100 * store["floor"] / plain["flops"],
        },
        "ways": {},
        "versions": found[-1]["versions"],
    }
    for way in ways[1:]:
        errors = [row[way]["error"] for row in (counts, *rounds) if "error" in row[way]]
        made["ways"][way] = {"error": errors[0]} if errors else against(counts, rounds, way)
    return made


def against(counts: dict[str, Any], rounds: list[dict[str, Any]], way: str) -> dict[str, Any]:
    pairs = [(row[way], row["plain"]) for row in rounds]
    own, plain = counts[way], counts["plain"]
    added = own["flops"] + own["map_flops"] - plain["flops"]
    moved = own["bytes"] + own["map_bytes"] - plain["bytes"]
    return {
        "call_ratio": median(one["call"] / base["call"] for one, base in pairs),
        "whole_ratio": median((one["call"] + one["maps"]) / base["call"] for one, base in pairs),
        "attention_ratio": median(one["attention"] / base["attention"] for one, base in pairs),
        "attention_ratios": [round(one["attention"] / base["attention"], 4) for one, base in pairs],
        "added_percent": median(
            100 * (one["attention"] - base["attention"] + one["maps"]) / base["call"] for one, base in pairs
        ),
        "hooks_and_maps_percent": median(100 * (one["hooks"] + one["maps"]) / base["call"] for one, base in pairs),
        "maps_ms": median(1e3 * one["maps"] for one, _ in pairs),
        "kept_bytes": median(one["kept"] for one, _ in pairs),
        "peak_bytes": own["peak"],
        "flops_added_percent": 100 * added / plain["flops"],
        "bytes_added_percent": 100 * moved / plain["bytes"],
    }


def aims(way: str, made: dict[str, Any], found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at for one of our ways, and whether it is met."""
    daam = way.endswith("daam")
    kept = KEPT if daam else found["rows"] * found["cells"] * 4 + SPARE
    bounds = {
        "hooks_and_maps_percent": 1.0,
        "attention_ratio": 1.05,
        "kept_bytes": kept,
        "maps_ms": 100 if daam else 20,
        "peak_bytes": VISIBLE,
    }
    return [
        {"what": name, "measured": made[name], "aim": aim, "met": made[name] is not None and made[name] <= aim}
        for name, aim in bounds.items()
    ]


def table(figures: dict[str, Any]) -> list[dict[str, Any]]:
    lines = []
    for name, found in figures["networks"].items():
        floor = {"operations added, %": found["plain"]["floor_percent"]}
        lines.append({"tracing": f"{found['title']}: the scores QK^T alone, which nobody can spare", **floor})
        for way, made in found["ways"].items():
            line: dict[str, Any] = {"tracing": f"{found['title']}: {way}"}
            if "error" in made:
                lines.append({**line, "aims met": made["error"]})
                continue
            peak = made["peak_bytes"]
            line |= {
                "whole call, CPU": made["whole_ratio"],
                "cross-attention, CPU": made["attention_ratio"],
                "added, % of the call": made["added_percent"],
                "operations added, %": made["flops_added_percent"],
                "kept, MB": made["kept_bytes"] / 1e6,
                "map step, ms": made["maps_ms"],
                "its peak, MB": None if peak is None else peak / 1e6,
            }
            if way in figures["aims"].get(name, {}):
                line["hooks and maps, %"] = made["hooks_and_maps_percent"]
                missed = [one["what"] for one in figures["aims"][name][way] if not one["met"]]
                line["aims met"] = f"**not** {', '.join(missed)}" if missed else True
            lines.append(line)
    for row in figures["parity"]:
        line = {"tracing": f"parity of recipe {row.get('recipe', 'daam')} with the package daam, {row['case']}"}
        error = row.get("error_same_kernel")
        lines.append({**line, "aims met": row["error"] if error is None else told(error)})
    return lines


def told(error: float) -> str:
    return f"{'yes' if error <= BOUND else '**no**'}: largest error {error:.1e} of the maximum, bound {BOUND:.0e}"
