//! What the operator decides, as pure functions from snapshots to plans.
