//! The pod that hosts tailnet identities and carries their traffic.
