//! Workload identity: programs that prove who they are by a token of their own platform, so that they keep no secret for this server.
//!
//! A cluster signs the tokens of its ServiceAccounts and publishes the keys. An OAuth client may be bound to an issuer, a subject and an audience
//! instead of a secret; whoever brings a token that is signed by that issuer and names both acts as the client. Only issuers that the configuration
//! names are believed, so that no caller makes this server fetch anything from elsewhere.

mod fetch;
mod issuers;
mod jwk;
mod jwt;

pub(crate) use self::fetch::FetchError;
pub(crate) use self::issuers::{Issuer, IssuerError, Issuers};
pub(crate) use self::jwt::{Claims, Token, TokenError};
