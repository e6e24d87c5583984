//! The controllers: watches, work queue, fetch and execute.
