"""Real text that is found on this machine.

    gather_text.py OUT N_BYTES         this project's documents and sources, then the licences and documents that every
                                       Debian system holds: exactly N_BYTES bytes of UTF-8 (or up to three fewer: no
                                       character is cut)
    gather_text.py --library FOLDER    the sources of Python's own library, a .txt file each: technical text to train on
"""

import pathlib
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
SYSTEM = ["/usr/share/common-licenses", "/usr/share/perl5/pod", "/usr/share/doc"]


def candidates():
    yield from sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md"))
    for folder in ("include", "src", "cli"):
        yield from sorted(ROOT.glob(f"{folder}/**/*.[ch]"))
    for folder in SYSTEM:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix in ("", ".txt", ".md", ".pod"):
                yield path


def read_text(path):
    """The bytes of a file, or None where they are not UTF-8 text."""
    try:
        piece = path.read_bytes()
        piece.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if b"\0" in piece else piece


def gather_library(folder):
    library, n_bytes = pathlib.Path(sysconfig.get_path("stdlib")), 0
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        piece = read_text(path)
        if not piece or {"test", "tests", "site-packages", "dist-packages", "encodings"} & set(name.parts):
            continue
        (folder / "-".join(name.with_suffix(".txt").parts)).write_bytes(piece)
        n_bytes += len(piece)
    print(f"{n_bytes:,} bytes of text from {library}")


def gather(out, n_bytes):
    text, n_files = b"", 0
    for path in candidates():
        if len(text) >= n_bytes:
            break
        piece = read_text(path)
        if piece is None:
            continue
        text += piece + b"\n"
        n_files += 1
    if len(text) < n_bytes:
        sys.exit(f"gather_text: only {len(text)} bytes of text found; name a file instead")
    text = text[:n_bytes].decode("utf-8", errors="ignore").encode()
    pathlib.Path(out).write_bytes(text)
    print(f"{len(text):,} bytes of text from {n_files} documents of this machine")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if sys.argv[1] == "--library":
        gather_library(pathlib.Path(sys.argv[2]))
    else:
        gather(sys.argv[1], int(sys.argv[2]))
