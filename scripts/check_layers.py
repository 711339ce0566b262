"""Check that includes follow the layers: python3 check_layers.py

docs/architecture.md draws the arrows; this file is their list. A file may include its own layer, the
layers named for it, and the public headers. Nothing above src/backend/ may mention a backend or an
instruction set in a preprocessor condition, and file names are unique.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# layer: the layers it may include, beside itself.
ALLOWED = {
    "include": [],
    "src/base": ["include"],
    "src/ops": ["include", "src/base"],
    "src/backend/ref": ["include", "src/base", "src/ops"],
    "src/backend/cpu": ["include", "src/base", "src/ops"],
    "src/backend/cuda": ["include", "src/base", "src/ops"],
    "src/model": ["include", "src/base"],
    "src/data": ["include", "src/base", "src/model"],
    "src/engine": ["include", "src/base", "src/model"],
    "src/train": ["include", "src/base", "src/model", "src/data", "src/tasks"],
    "src/tasks": ["include", "src/base"],
    "src/eval": ["include", "src/base", "src/model", "src/data", "src/engine", "src/tasks"],
    "src/convert": ["include", "src/base", "src/model"],
    "cli": ["include"],
}
ISA_CONDITION = re.compile(
    r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*\b(__AVX\w*|__SSE\w*|__ARM_\w*|__x86_64__|__aarch64__|__CUDA\w*)"
)
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def layer_of(path):
    """The longest layer name that this path lies under, or None."""
    names = [name for name in ALLOWED if path == name or path.startswith(name + "/")]
    return max(names, key=len, default=None)


def resolve(name, including):
    """Path from the root of an included file, or None when it is not ours."""
    for folder in (including.parent, ROOT / "src", ROOT / "include", ROOT / "cli"):
        if (folder / name).is_file():
            return (folder / name).resolve().relative_to(ROOT).as_posix()
    return None


def check_file(path):
    errors = []
    here = path.relative_to(ROOT).as_posix()
    layer = layer_of(here)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            target = resolve(match[1], path)
            other = layer_of(target) if target else None
            if target is None:
                errors.append(f'{here}:{number}: "{match[1]}" is not in this tree')
            elif other != layer and other not in ALLOWED.get(layer, []):
                errors.append(f"{here}:{number}: {layer} must not include {target}")
        above = not here.startswith(("src/backend/", "src/base/"))
        if above and ISA_CONDITION.match(line):
            errors.append(f"{here}:{number}: a condition on an instruction set above src/backend/")
    return errors


def main():
    files = [
        p
        for folder in ("include", "src", "cli")
        for p in sorted((ROOT / folder).rglob("*.[ch]"))
    ]
    errors = [e for path in files for e in check_file(path)]
    names = {}
    for path in files:
        if path.suffix == ".c" and path.name in names:
            errors.append(f"{path.relative_to(ROOT)}: same name as {names[path.name]}")
        names.setdefault(path.name, path.relative_to(ROOT))
    for error in errors:
        print(error)
    print(f"check_layers: {len(files)} files, {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
