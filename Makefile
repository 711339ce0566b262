# A menu; the build is CMake (see CMakePresets.json).
.PHONY: help build test quick run install format clean

help:
	@echo "make build     the program and the libraries, in build/release"
	@echo "make run       sh run.sh: a model reads a long text"
	@echo "make test      sh test.sh: every test"
	@echo "make quick     sh test.sh quick: without the sanitizer builds"
	@echo "make install   install build/release; DESTDIR=... and PREFIX=... are understood"
	@echo "make format    clang-format on every C file"
	@echo "make clean     remove build/"

build:
	@sh scripts/setup.sh
	cmake --preset release
	ninja -C build/release

test:
	@sh test.sh

quick:
	@sh test.sh quick

run:
	@sh run.sh

PREFIX ?= /usr/local
install: build
	DESTDIR="$(DESTDIR)" cmake --install build/release --prefix "$(PREFIX)"

format:
	git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	rm -rf build
