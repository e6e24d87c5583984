#!/usr/bin/env bash
# Runs every test and prints the totals last. End-to-end tests come after the others, which they would slow down.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kind=warm; [ -e target/x86_64-unknown-linux-musl/release/tailwharf ] || kind=cold   # cold: nothing was built yet
mkdir -p build
log=build/test.log; : >"$log"
make --no-print-directory setup images || exit 1
# Properties draw the same cases in each run, so that a commit has one verdict; PROPTEST_RNG_SEED=N draws others.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-20260101}
status=0
# All packages are built in one go: chosen apart, their dependencies would be built again with other features.
export LATER=$PWD/build/test.later; : >"$LATER"
cargo test --workspace --locked --no-fail-fast --config "target.'cfg(all())'.runner = '$PWD/setup/run-test.sh'" 2>&1 | tee -a "$log" || status=1
while read -r program; do
  (cd e2e && "$program" </dev/null) 2>&1 | tee -a "$log" || status=1
done <"$LATER"
# Each runner closes with: test result: ok. 3 passed; 0 failed; 1 ignored; …
awk '/^test result:/ { gsub(/[;.]/, ""); for (i = 1; i <= NF; i++) { if ($i == "passed") p += $(i-1); if ($i == "failed") f += $(i-1); if ($i == "ignored") s += $(i-1) } }
  END { printf "\n%d passed, %d failed, %d skipped\n", p, f, s }' "$log"
echo "$SECONDS" >"build/test-seconds.$kind"   # `make bench` reports it
echo "took $SECONDS s, $kind"
exit $status
