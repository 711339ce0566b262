"""scripts/training_speed.py over its recipes, made small: every stage runs, rows become tables."""

import csv
import json
import subprocess
import sys

from conftest import PROGRAM, SOURCE

sys.path.insert(0, str(SOURCE / "scripts"))
import study_recipes  # noqa: E402

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "index_n_heads": 2,
         "index_head_dim": 16, "index_block_size": 16, "index_topk_blocks": 2, "dense_intermediate_size": 32,
         "num_local_experts": 2, "intermediate_size": 16, "shared_intermediate_size": 16}


def shrink(recipe):
    """Narrow layers, sequences of 32 to 512 tokens."""
    if "model_of" in recipe:
        recipe["model"] = {"config": study_recipes.read_row(recipe.pop("model_of"))["model"]["config"]}
    config = recipe["model"]["config"]
    config |= {key: SMALL[key] for key in SMALL.keys() & config.keys()}
    recipe["layer_context"] //= 256
    for stage in recipe["stages"]:
        for key in ("length", "step_tokens", "micro_tokens"):
            stage[key] //= 256
        stage["steps"] = 3
    return recipe


def test_a_small_table(tmp_path):
    (tmp_path / "recipes").mkdir()
    recipes = {path.stem: study_recipes.read_json(path) for path in (SOURCE / "recipes/speed").iterdir()}
    for name, recipe in recipes.items():
        (tmp_path / "recipes" / f"{name}.json").write_text(json.dumps(shrink(recipe)))
    (tmp_path / "page.md").write_text("<!-- speed -->none<!-- end of speed -->")
    command = [sys.executable, SOURCE / "scripts/training_speed.py", "--msa", PROGRAM, "--device", "cpu", "--recipes",
               tmp_path / "recipes", "--words", 5000, "--commit", "0123abc", "--csv", tmp_path / "out/rows.csv",
               "--page", tmp_path / "page.md"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr

    rows = list(csv.DictReader((tmp_path / "out/rows.csv").read_text().splitlines()))
    for name, recipe in recipes.items():
        of_model = {row["what"]: row for row in rows if row["model"] == name}
        for stage in recipe["stages"]:
            row = of_model[stage["name"]]
            assert row["runs"] == "2" and int(row["tokens"]) == stage["step_tokens"] and float(row["mfu"]) >= 0
            assert 0 < float(row["ms_p10"]) <= float(row["ms"]) <= float(row["ms_p90"])
        parts = ("select", "attend forward", "reverse index", "attend backward", "index loss")
        total = sum(float(of_model[f"layer: {part}"]["ms"]) for part in parts)
        assert 0.5 * total < float(of_model["layer: msa"]["ms"]) < 2 * total
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("<!-- speed -->\n") and "commit 0123abc" in page and "| 8K, full | 256 | " in page
