//! The built-in control server: registration, maps, policy, API v2, store.
