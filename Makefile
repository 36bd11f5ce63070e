# Kiln: make demo and make test are all a fresh Debian 12 machine needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
TARGET := $(or $(CARGO_TARGET_DIR),target)
KILN := $(TARGET)/release/kiln
KILN_RT := $(TARGET)/release/kiln-rt
PY := .venv/bin/python

.PHONY: help setup build demo test models random fmt lint bench-peers clean

help:
	@echo "make demo         install what is missing, build, compile and run a real model"
	@echo "make test         install what is missing, run every check"
	@echo "make models       the image networks that make test leaves out for their size"
	@echo "make random N=500 random ONNX graphs against ONNX Runtime, FIRST=SEED"
	@echo "make bench-peers  time Kiln against ONNX Runtime; ARGS='--only NAME --rounds N --threads N'"
	@echo "make build | lint | fmt | clean"

setup:
	@bash scripts/setup.sh

build: setup
	cargo build --release --workspace --bins --examples

demo: build
	@$(PY) scripts/models.py minilm > /dev/null
	$(KILN) compile "$$($(PY) scripts/models.py minilm)" -o $(TARGET)/minilm.kiln
	$(TARGET)/release/examples/similarity $(TARGET)/minilm.kiln "$$($(PY) scripts/models.py tokenizer)"

test: setup
	@bash scripts/test.sh

models: build
	$(PY) scripts/light_models.py $(KILN) $(KILN_RT)

random: build
	@bash scripts/random_graphs.sh $(or $(N),500) $(or $(FIRST),0)

fmt:
	cargo fmt --all

lint: setup
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings

bench-peers: build
	$(PY) benches/peers.py $(KILN_RT) $(KILN) $(ARGS)
	$(PY) benches/peers_int8.py $(KILN_RT) $(KILN) $(TARGET)/release/examples/peak
	$(PY) benches/peers_int8_images.py $(KILN_RT) $(KILN)

clean:
	cargo clean
