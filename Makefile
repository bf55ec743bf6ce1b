# Two commands set everything up: `make demo` runs the main job, `make test` runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CXX_FILES := $(shell git ls-files --cached --others --exclude-standard 'csrc/*.cpp' 'csrc/*.h')
CORE_FILES := $(CXX_FILES) csrc/CMakeLists.txt csrc/compiler.cmake csrc/editable/CMakeLists.txt
CXX_FILES += tests/core/vectors.cpp

FOLDER ?= models

.PHONY: demo real test test-all fuzz check format core sanitize sanitize-thread clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch is pinned for development: without the constraint pip may take gigabytes of CUDA packages
$(VENV)/run: pyproject.toml constraints.txt $(CORE_FILES) | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[torch]'
	touch $@

# without the core, which the next rule builds with these tools: again and again, only what changed
$(VENV)/dev: pyproject.toml constraints.txt | $(BIN)/python
	SKBUILD_WHEEL_CMAKE=false $(PIP) install --quiet -c constraints.txt -e '.[test,dev]'
	touch $@

# beside the Python sources; where it cannot be built, bitsmith is installed without it
$(VENV)/core: $(VENV)/dev $(CORE_FILES)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --quiet --no-build-isolation --no-deps -e .
	touch $@

demo: $(VENV)/run
	$(BIN)/python bench/demo.py

# the main job on real models: Hugging Face folders and GGUF files in FOLDER
real: $(VENV)/run
	$(BIN)/python bench/real.py "$(FOLDER)"

test: $(VENV)/core
	$(BIN)/python -m pytest -n auto

# also those that take minutes each
test-all: $(VENV)/core
	$(BIN)/python -m pytest -n auto -m ""

# damaged and hostile files through every command, for FUZZ_SECONDS; failing inputs are kept below build/fuzz
FUZZ_SECONDS ?= 300
FUZZ_FIRST ?= $(shell date +%s)
fuzz: $(VENV)/core
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --first $(FUZZ_FIRST)

check: $(VENV)/core
	$(BIN)/ruff check bitsmith tests bench
	$(BIN)/ruff format --check bitsmith tests bench
	$(BIN)/mypy
	$(BIN)/clang-format --style=file:csrc/.clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/python -m pytest -n auto

format: $(VENV)/dev
	$(BIN)/ruff format bitsmith tests bench
	$(BIN)/ruff check --fix bitsmith tests bench
	$(BIN)/clang-format --style=file:csrc/.clang-format -i $(CXX_FILES)

core: $(VENV)/core

# tests of the core, built to notice errors while it runs; libstdc++ is loaded early so that its exceptions are seen
define sanitized_tests
	$(BIN)/cmake -S csrc -B build/$@ -G Ninja -DBITSMITH_SANITIZE=$(1) \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build build/$@
	BITSMITH_CORE="$$(ls $(abspath build/$@)/_core*.so)" $(3) \
	    LD_PRELOAD="$$($(CXX) -print-file-name=$(2)) $$($(CXX) -print-file-name=libstdc++.so)" \
	    $(4) $(BIN)/python -m pytest -p no:cacheprovider --capture=sys tests/core
endef

# AddressSanitizer and UndefinedBehaviorSanitizer; Python itself leaks, so leaks are not looked for
sanitize: $(VENV)/core
	$(call sanitized_tests,address,libasan.so,ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0)

# ThreadSanitizer: the core alone, as Python and numpy are not built for it
sanitize-thread: $(VENV)/core
	$(call sanitized_tests,thread,libtsan.so,TSAN_OPTIONS=halt_on_error=1)

clean:
	rm -rf $(VENV) demo build dist
	git clean -qfdX csrc bitsmith
