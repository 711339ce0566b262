"""The tables of docs/quality.md and the study's cells of docs/claims.md, from what study.py eval wrote."""

import collections
import sys

import study_recipes as recipes

DASH = "–"


def read_results(folder):
    """{row: [result of each seed]} in the order of the recipes."""
    found = collections.defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        result = recipes.read_json(path)
        found[result["row"]].append(result)
    order = recipes.GROUPS["all"]
    return {row: found[row] for row in sorted(found, key=lambda row: order.index(row) if row in order else len(order))}


def spread(values, form):
    """The mean, and from where to where when there are several."""
    values = [value for value in values if value is not None]
    if not values:
        return DASH
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))}{DASH}{form.format(max(values))})"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def answers(result, length, tasks=None):
    return [one for one in result["eval"] if one["length"] == length and one["task"] in (tasks or recipes.read_questions()["tasks"])]


def accuracy(result, length, tasks=None):
    found = [one["accuracy"] for one in answers(result, length, tasks)]
    return 100 * sum(found) / len(found) if found else None


def of_task(result, task, length, key):
    return next((one[key] for one in result["eval"] if one["task"] == task and one["length"] == length), None)


def validation(result, stage):
    return next((line["validation_loss"] for line in reversed(result["validation"]) if line["stage"] == stage), None)


def name_length(length):
    return f"{length // 1024}K"


def lengths():
    return [int(length) for length in recipes.read_questions()["count"]]


def main_table(results, rows):
    head = ["row", "validation loss, 32K", *[f"tasks, {name_length(n)}" for n in lengths()], "block recall, 32K", "GPU seconds"]
    body = []
    for row in rows:
        seeds = results[row]
        body.append([f"`{row}`", spread([validation(one, "32K") for one in seeds], "{:.3f}"),
                     *[spread([accuracy(one, n) for one in seeds], "{:.1f}") for n in lengths()],
                     spread([of_task(one, "recall", 32768, "block_recall") for one in seeds], "{:.3f}"),
                     spread([one["seconds"] for one in seeds], "{:.0f}")])
    return table(head, body)


def task_table(results, rows):
    tasks = recipes.read_questions()["tasks"]
    body = []
    for row in rows:
        for n in lengths():
            cells = [spread([accuracy(one, n, [task]) for one in results[row]], "{:.0f}") for task in tasks]
            body.append([f"`{row}`", name_length(n), *cells])
    return table(["row", "length", *tasks], body)


def position_table(results, rows):
    length = max(int(n) for n in recipes.read_questions()["perplexity"])
    bins = {}
    for row in rows:
        for result in results[row]:
            for one in of_task(result, "perplexity", length, "by_position") or []:
                bins.setdefault(one["from"], one["to"])
    head = ["row", *[f"{begin:,} to {end:,}" for begin, end in sorted(bins.items()) if begin >= 256]]
    body = []
    for row in rows:
        cells = []
        for begin in sorted(bins):
            if begin < 256:
                continue
            losses = [one["loss"] for result in results[row] for one in of_task(result, "perplexity", length, "by_position") or []
                      if one["from"] == begin]
            cells.append(spread(losses, "{:.3f}"))
        body.append([f"`{row}`", *cells])
    return table(head, body)


def rate(found, amount, seconds, scale):
    """Milliseconds or so per token over several answers."""
    n = sum(one[amount] for one in found)
    return scale * sum(one[seconds] for one in found) / n if n else None


def cost_table(results, rows):
    head = ["row", "training, s", "PFLOP", *[f"reading {name_length(n)}, s" for n in lengths()],
            *[f"a token at {name_length(n)}, ms" for n in lengths()]]
    body = []
    for row in rows:
        seeds = results[row]
        reads = [spread([rate(answers(one, n), "count", "read_seconds", 1) for one in seeds], "{:.2f}") for n in lengths()]
        writes = [spread([rate(answers(one, n), "generated_tokens", "generate_seconds", 1000) for one in seeds], "{:.2f}")
                  for n in lengths()]
        body.append([f"`{row}`", spread([one["seconds"] for one in seeds], "{:.0f}"),
                     spread([one["tflop"] / 1000 for one in seeds], "{:.2f}"), *reads, *writes])
    return table(head, body)


# ---- docs/claims.md ----------------------------------------------------------------------------------------


def compare(results, rows, form, pick):
    """`full` 3.21, `msa` 3.25: a figure of each row that there is."""
    cells = [(row, spread([pick(one) for one in results[row]], form)) for row in rows if row in results]
    return ", ".join(f"`{row}` {cell}" for row, cell in cells if cell != DASH)


def by_length(results, rows, tasks=None):
    """Accuracy at every length, a clause a length."""
    clauses = [(n, compare(results, rows, "{:.0f}", lambda one, n=n: accuracy(one, n, tasks))) for n in lengths()]
    return "; ".join(f"{name_length(n)}: {clause}" for n, clause in clauses if clause)


def claim_cells(results):
    def loss(rows):
        return "loss at 32K " + compare(results, rows, "{:.3f}", lambda one: validation(one, "32K"))

    def score(rows):
        return f"{loss(rows)}; tasks {by_length(results, rows)}"

    selective = ["full", "msa", "moba", "dsa"]
    mass = compare(results, ["msa"], "{:.2f}", lambda one: of_task(one, "recall", 32768, "captured_mass"))
    return {
        "claim 12": score(["full", "msa"]),
        "claim 13": score(["full", "msa-converted", "msa"]),
        "claim 14": score(["msa", "msa-no-stop-gradient", "msa-no-warmup"]),
        "claim 15": "common words " + by_length(results, ["full", "swa", "hybrid", "msa"], ["common-words"]),
        "claim 17": "variable tracking "
                    + by_length(results, ["full", "msa", "swa", "hybrid", "lightning"], ["variable-tracking"]),
        "claim 21": f"{score(selective)}; mass captured at 32K {mass}",
        "claim 23": "the busiest expert's share over the mean, last step: "
                    + compare(results, ["full", "msa"], "{:.2f}", lambda one: one["worst_expert_load"]),
        "claim 29": "one needle, " + by_length(results, ["full", "msa", "msa-converted"], ["single-needle"]),
    }


# ---- pages -------------------------------------------------------------------------------------------------


def about_table(results):
    return table(["row", "what"], [[f"`{row}`", recipes.read_row(row)["about"]] for row in results])


def conditions(results):
    every = [result for seeds in results.values() for result in seeds]
    budgets = sorted({f"{result['tokens'] / 1e6:.0f}M" for result in every})
    devices = sorted({result["device"] for result in every})
    counts = ", ".join(f"{n} at {name_length(int(length))}" for length, n in recipes.read_questions()["count"].items())
    return (f"Tokens of a run: {', '.join(budgets)}. Machines: {', '.join(devices)}. Questions of a task: {counts}, "
            "seed 777. Means, with the lowest and highest seed in brackets where there are several.")


def put(page, parts, separator):
    """Replace what stands between the marks of each part."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            sys.exit(f"study.py table: {page} has no place for {name}")
        text = text[: text.index(begin) + len(begin)] + separator + part + separator + text[text.index(end) :]
    page.write_text(text, encoding="utf-8")


def write(folder, docs):
    """0, or an exit with a message: the tables of quality.md and the study's cells of claims.md in `docs`."""
    results = read_results(folder)
    if not results:
        sys.exit(f"study.py table: no results in {folder}")
    main = [row for row in results if row in recipes.MAIN]
    ablations = [row for row in results if row in ["msa", *recipes.ABLATIONS]]
    tables = {"conditions": conditions(results), "rows": about_table(results), "main": main_table(results, main),
              "tasks": task_table(results, main), "position": position_table(results, main),
              "cost": cost_table(results, main), "ablations": main_table(results, ablations)}
    put(docs / "quality.md", tables, "\n")
    put(docs / "claims.md", claim_cells(results), "")
    return 0
