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
    order = {row: i for i, row in enumerate(recipes.GROUPS["all"])}
    return {row: found[row] for row in sorted(found, key=lambda row: order.get(row, len(order)))}


def ablations(results):
    """The ablations and the row that they change, all with those seeds that every one of them has."""
    rows = {row: results[row] for row in ["msa", *recipes.ABLATIONS] if row in results}
    shared = set.intersection(*({one["seed"] for one in seeds} for seeds in rows.values())) if len(rows) > 1 else set()
    return {row: [one for one in seeds if one["seed"] in shared] for row, seeds in rows.items()} if shared else rows


def spread(values, form):
    """The mean, and from where to where when there are several."""
    values = [value for value in values if value is not None]
    if not values:
        return DASH
    mean = form.format(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))}{DASH}{form.format(max(values))})"


def least(values, form):
    """A cost: of the fastest seed, since runs may share a machine."""
    values = [value for value in values if value is not None]
    return form.format(min(values)) if values else DASH


def name_length(length):
    return f"{length // 1024}K"


def lengths():
    return [int(length) for length in recipes.read_questions()["count"]]


# ---- figures of one result, None where it has none ------------------------------------------------------------


def answers(result, length, tasks=None):
    tasks = tasks or recipes.read_questions()["tasks"]
    return [one for one in result["eval"] if one["length"] == length and one["task"] in tasks]


def accuracy(result, length, tasks=None):
    found = [one["accuracy"] for one in answers(result, length, tasks)]
    return 100 * sum(found) / len(found) if found else None


def each(result, length, amount, seconds):
    """Seconds for one of an amount, over the tasks of a length."""
    found = answers(result, length)
    n = sum(one[amount] for one in found)
    return sum(one[seconds] for one in found) / n if n else None


def token_ms(result, length):
    seconds = each(result, length, "generated_tokens", "generate_seconds")
    return seconds and 1000 * seconds


def of_task(result, task, length, key):
    return next((one[key] for one in result["eval"] if one["task"] == task and one["length"] == length), None)


def validation(result, stage):
    return next((line["validation_loss"] for line in reversed(result["validation"]) if line["stage"] == stage), None)


# ---- tables ----------------------------------------------------------------------------------------------------


def table(results, rows, columns):
    """A line a row; columns: (head, form, figure of a result, how seeds become a cell: spread)."""
    lines = [" | ".join(["row", *[head for head, *_ in columns]]), " | ".join(["---"] * (1 + len(columns)))]
    for row in rows:
        cells = [(join[0] if join else spread)([pick(one) for one in results[row]], form)
                 for _, form, pick, *join in columns]
        lines.append(" | ".join([f"`{row}`", *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def quality_table(results, rows):
    columns = [("validation loss, 32K", "{:.3f}", lambda one: validation(one, "32K"))]
    columns += [(f"tasks, {name_length(n)}", "{:.1f}", lambda one, n=n: accuracy(one, n)) for n in lengths()]
    return table(results, rows, columns)


def task_tables(results, rows):
    parts = []
    for n in lengths():
        tasks = recipes.read_questions()["tasks"]
        columns = [(task, "{:.0f}", lambda one, task=task: accuracy(one, n, [task])) for task in tasks]
        parts.append(f"{name_length(n)}:\n\n{table(results, rows, columns)}")
    return "\n\n".join(parts)


def position_table(results, rows):
    length = max(int(n) for n in recipes.read_questions()["perplexity"])

    def losses(result):
        bins = of_task(result, "perplexity", length, "by_position") or []
        return {(one["from"], one["to"]): one["loss"] for one in bins if one["from"] >= 256}

    bins = sorted({key for row in rows for result in results[row] for key in losses(result)})
    columns = [(f"{key[0]:,} to {key[1]:,}", "{:.3f}", lambda one, key=key: losses(one).get(key)) for key in bins]
    return table(results, rows, columns)


def recall_table(results, rows):
    columns = []
    for n in map(int, recipes.read_questions()["recall"]):
        for key in ("block_recall", "score_recall", "captured_mass"):
            head = f"{key.replace('_', ' ')}, {name_length(n)}"
            columns.append((head, "{:.3f}", lambda one, n=n, key=key: of_task(one, "recall", n, key)))
    return table(results, rows, columns)


def cost_table(results, rows):
    columns = [("training, s", "{:.0f}", lambda one: one["seconds"], least),
               ("PFLOP", "{:.2f}", lambda one: one["tflop"] / 1000)]
    columns += [(f"reading {name_length(n)}, s", "{:.2f}", lambda one, n=n: each(one, n, "count", "read_seconds"),
                 least)
                for n in lengths()]
    columns += [(f"a token at {name_length(n)}, ms", "{:.2f}", lambda one, n=n: token_ms(one, n), least)
                for n in lengths()]
    return table(results, rows, columns)


def blocks_table(results, rows):
    """Block sizes at the shortest length, task by task: rows of one build, which need not be that of the others."""
    n = lengths()[0]
    columns = [("validation loss, 32K", "{:.3f}", lambda one: validation(one, "32K")),
               (f"tasks, {name_length(n)}", "{:.1f}", lambda one: accuracy(one, n))]
    columns += [(task, "{:.0f}", lambda one, task=task: accuracy(one, n, [task]))
                for task in recipes.read_questions()["tasks"]]
    columns += [(f"{key.replace('_', ' ')}, {name_length(n)}", "{:.3f}",
                 lambda one, key=key: of_task(one, "recall", n, key)) for key in ("score_recall", "captured_mass")]
    return table(results, rows, [*columns, ("training, s", "{:.0f}", lambda one: one["seconds"], least)])


# ---- docs/claims.md ----------------------------------------------------------------------------------------


def compare(results, rows, form, pick, join=spread):
    """`full` 3.21, `msa` 3.25: a figure of each row that there is."""
    cells = [(row, join([pick(one) for one in results[row]], form)) for row in rows if row in results]
    return ", ".join(f"`{row}` {cell}" for row, cell in cells if cell != DASH)


def by_length(results, rows, tasks=None):
    """Accuracy at every length, a clause a length."""
    clauses = [(n, compare(results, rows, "{:.0f}", lambda one, n=n: accuracy(one, n, tasks))) for n in lengths()]
    return "; ".join(f"{name_length(n)}: {clause}" for n, clause in clauses if clause)


def claim_cells(results):
    """{name: text} of the claims for which there are two rows to compare."""

    def loss(rows, results=results):
        return "loss at 32K " + compare(results, rows, "{:.3f}", lambda one: validation(one, "32K"))

    def score(rows, results=results):
        return f"{loss(rows, results)}; tasks {by_length(results, rows)}"

    def precision(rows):
        """Of what full attention would look at there, the share that the selection holds."""
        clauses = [f"{name_length(n)}: " + compare(results, rows, "{:.2f}",
                   lambda one, n=n: of_task(one, "recall", n, "captured_mass"))
                   for n in map(int, recipes.read_questions()["recall"])]
        return f"captured mass, {'; '.join(clauses)}; {score(rows)}"

    def taught(rows):
        return score(rows, ablations(results))

    def token(rows):
        clauses = [(n, compare(results, rows, "{:.2f}", lambda one, n=n: token_ms(one, n), least)) for n in lengths()]
        return "ms a token, " + "; ".join(f"{name_length(n)}: {clause}" for n, clause in clauses)

    def one_task(task):
        return lambda rows: f"{task}, {by_length(results, rows, [task])}"

    def busiest(rows):
        figures = compare(results, rows, "{:.2f}", lambda one: one["worst_expert_load"])
        return f"the busiest expert's share over the mean at the end {figures}"

    claims = {
        "claim 12": (["full", "msa"], score),
        "claim 13": (["full", "msa-converted", "msa"], score),
        "claim 14": (["msa", "msa-no-stop-gradient", "msa-no-warmup"], taught),
        "claim 15": (["full", "swa", "hybrid", "msa"], one_task("common-words")),
        "claim 17": (["full", "msa", "swa", "hybrid", "lightning"], one_task("variable-tracking")),
        "claim 21": (["msa", "moba", "dsa"], precision),
        "claim 23": (["full", "msa"], busiest),
        "claim 29": (["full", "msa", "msa-converted"], one_task("single-needle")),
        "claim 30": (["full", "msa"], token),
    }
    return {name: write_cell(rows) for name, (rows, write_cell) in claims.items()
            if sum(row in results for row in rows) > 1}


# ---- pages -------------------------------------------------------------------------------------------------


def about_table(results):
    lines = ["row | what", "--- | ---", *[f"`{row}` | {recipes.read_row(row)['about']}" for row in results]]
    return "\n".join(f"| {line} |" for line in lines)


def conditions(results):
    every = [result for seeds in results.values() for result in seeds]
    budgets = sorted({f"{result['tokens'] / 1e6:.0f}M" for result in every})
    devices = sorted({result["device"] for result in every})
    counts = ", ".join(f"{n} at {name_length(int(length))}" for length, n in recipes.read_questions()["count"].items())
    return (f"Tokens of a run, without what it begins with: {', '.join(budgets)}. Machines: {', '.join(devices)}. "
            f"Questions of a task: {counts}, seed 777. Means, with the lowest and highest seed in brackets where "
            "there are several.")


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
    """0, or an exit with a message: the tables of quality.md and the study's cells of claims.md in `docs`, the
    main one in README.md beside it."""
    results = read_results(folder)
    if not results:
        sys.exit(f"study.py table: no results in {folder}")
    main, changed = [row for row in results if row in recipes.MAIN], ablations(results)
    tables = {"conditions": conditions(results), "rows": about_table(results), "main": quality_table(results, main),
              "tasks": task_tables(results, main), "position": position_table(results, main),
              "recall": recall_table(results, [row for row in results if recipes.selects(row)]),
              "cost": cost_table(results, main), "ablations": quality_table(changed, list(changed))}
    if blocks := read_results(folder / "blocks"):
        tables["blocks"] = blocks_table(blocks, list(blocks))
    put(docs / "quality.md", tables, "\n")
    put(docs.parent / "README.md", {"study": tables["main"]}, "\n")
    put(docs / "claims.md", claim_cells(results), "")
    return 0
