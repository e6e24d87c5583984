//! Client of the tailnet's API v2, and an in-memory fake of it.
