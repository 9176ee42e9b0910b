"""What a reader of a run's report should know before all the rest."""

from u1_core.train.run_log import RunLog
from u1_core.train.validation import judged_by

SLOW_DATA = 0.2
"""Share of the time waited for pictures above which the report warns."""


def warnings_of(run: RunLog) -> list[str]:
    """One line each, in the order in which they matter; none twice."""
    found = [record["message"] for event in ("warning", "out_of_memory") for record in run.of(event)]
    found += [
        f"step {record['step']}: {event} failed: {record['failed']}"
        for event in ("validation", "preview")
        for record in run.of(event)
        if "failed" in record
    ]
    found += [
        f"step {record['from_step']}: went back to step {record['step']} with the learning rate at "
        f"{record['lr_scale']:g} of the recipe's: {record['reason']}"
        for record in run.of("rollback")
    ]
    if skipped := [record for record in run.steps if record.get("skipped")]:
        last = skipped[-1]
        found.append(f"steps skipped: {len(skipped)}, the last at step {last['step']}: {last['skipped']}")
    waited = sum(wait for _, wait in run.curve("data_wait_s"))
    spent = sum(record["seconds"] for record in run.steps)
    if spent and waited / spent > SLOW_DATA:
        found.append(
            f"{waited / spent:.0%} of the time went by waiting for pictures; raise data.workers or data.cache_mb"
        )
    if validations := run.validations:
        share = validations[-1][judged_by(validations[-1])]["x0"]
        if len(validations) > 1 and share["high"] > 100:
            found.append("after all these steps the model is not surely better than the base: its band reaches 100 %")
        looks = [(record["step"], record["held_out"]["x0"]) for record in validations if "held_out" in record]
        step, best = min(looks, key=lambda look: look[1]["percent"], default=(0, None))
        if best and share["percent"] > best["high"]:
            found.append(
                f"held-out pictures were best at step {step:,} ({best['percent']:.1f} %) and have been getting worse: "
                "what came later is memorised; use a checkpoint from around there"
            )
        if "held_out" not in validations[-1]:
            found.append("no picture was held out, so memorising cannot be told (validation.split, or more pictures)")
    return list(dict.fromkeys(found))
