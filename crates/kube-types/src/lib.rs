//! Kubernetes objects of the contract, parsed once into types.
