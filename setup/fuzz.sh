#!/usr/bin/env bash
# Fuzzes each target of fuzz/ for a while, from the corpus that the tests replay. What breaks one is left in fuzz/artifacts: add it to the corpus.
#
#   fuzz.sh [SECONDS] [TARGET…]      60 s each, all of them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}; shift || true
rustup toolchain list | grep -q ^nightly || { echo "fuzz: needs a nightly compiler: rustup toolchain install nightly" >&2; exit 1; }
cargo fuzz --version >/dev/null 2>&1 || { echo "fuzz: installing cargo-fuzz"; cargo install --locked cargo-fuzz; }
targets=("$@")
[ ${#targets[@]} != 0 ] || mapfile -t targets < <(cargo +nightly fuzz list)
for target in "${targets[@]}"; do
  seeds=()
  for known in crates/*/tests/corpus/"$target"; do [ ! -d "$known" ] || seeds+=("$known"); done
  echo "fuzz: $target, $seconds s"
  # What is new goes into the first folder, which is not kept.
  mkdir -p "fuzz/corpus/$target"
  cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "${seeds[@]}" -- -max_total_time="$seconds" -verbosity=0 -print_final_stats=1
done
