//! The policy language: HuJSON to per-node packet filters.
