//! Real peers, clusters and tailnets for tests; never part of the image.
