"""Write real text found on this machine to a file: python3 gather_text.py OUT N_BYTES

Takes this project's documents and sources, then the licences and documents that every Debian system holds,
until there are exactly N_BYTES bytes (or up to three fewer: no character is cut) of UTF-8.
"""

import pathlib
import sys

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


def main(out, n_bytes):
    text, n_files = b"", 0
    for path in candidates():
        if len(text) >= n_bytes:
            break
        try:
            piece = path.read_bytes()
            piece.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if b"\0" in piece:
            continue
        text += piece + b"\n"
        n_files += 1
    if len(text) < n_bytes:
        sys.exit(f"gather_text: only {len(text)} bytes of text found; name a file instead")
    text = text[:n_bytes].decode("utf-8", errors="ignore").encode()
    pathlib.Path(out).write_bytes(text)
    print(f"{len(text):,} bytes of text from {n_files} documents of this machine")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
