//! Client of a tailnet's API v2: Tailscale's service, Headscale, and our own coordinator speak it.
//!
//! The trait [`ControlApi`] is what callers see. [`Client`] speaks HTTP; the fake behind the feature `fake` keeps a
//! tailnet in memory, and both answer the same [`contract`] tests. Errors are branched on by type, and types come from
//! status codes, never from message texts.
//!
//! This crate never logs or prints a secret: every one is a [`Secret`].

mod backoff;
mod client;
mod error;
mod network;
mod oauth;
mod secret;
mod transport;
mod types;

#[cfg(feature = "fake")]
pub mod contract;
#[cfg(feature = "fake")]
pub mod fake;

use std::future::Future;
use std::pin::Pin;

use ipnet::IpNet;

pub use client::{Client, ClientConfig, Credentials};
pub use error::{ConfigError, Error};
pub use network::{DeviceRoutes, DnsConfig, DnsPreferences, Resolver, VipService};
pub use secret::Secret;
pub use types::{AuthKey, CreateKey, Device, DeviceFilter, DeviceId, KeyId, KeyInfo, PolicyFile};

/// The pending answer of one API call.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// What callers ask of a control server. Object-safe, so that one process can hold any implementation.
pub trait ControlApi: Send + Sync {
    /// Checks that the credentials are accepted and may see auth keys. Call it once at start, to fail early and clearly.
    fn verify(&self) -> Call<'_, ()>;

    /// Mints an auth key.
    ///
    /// Never repeated on its own once the server may have seen the request, so that one call mints at most one key.
    /// [`Error::KeyRefused`] names the tags when the server does not allow them.
    fn create_key<'a>(&'a self, request: &'a CreateKey) -> Call<'a, AuthKey>;

    /// Lists the ids of the keys that the credentials can see.
    fn list_keys(&self) -> Call<'_, Vec<KeyInfo>>;

    /// Revokes an auth key. [`Error::NotFound`] when there is none of this id.
    fn delete_key<'a>(&'a self, id: &'a KeyId) -> Call<'a, ()>;

    /// Reads one device. [`Error::NotFound`] when there is none of this id.
    fn device<'a>(&'a self, id: &'a DeviceId) -> Call<'a, Device>;

    /// Lists the devices that pass the filter.
    fn list_devices<'a>(&'a self, filter: &'a DeviceFilter) -> Call<'a, Vec<Device>>;

    /// Replaces the tags of a device. [`Error::Forbidden`] or [`Error::Invalid`] when the credentials may not give one of them.
    fn set_device_tags<'a>(&'a self, id: &'a DeviceId, tags: &'a [String]) -> Call<'a, ()>;

    /// Removes a device from the tailnet. [`Error::NotFound`] when there is none of this id.
    fn delete_device<'a>(&'a self, id: &'a DeviceId) -> Call<'a, ()>;

    /// The routes of a device. [`Error::NotFound`] when there is none of this id.
    fn device_routes<'a>(&'a self, id: &'a DeviceId) -> Call<'a, DeviceRoutes>;

    /// Replaces the approved routes of a device.
    fn set_device_routes<'a>(&'a self, id: &'a DeviceId, routes: &'a [IpNet]) -> Call<'a, DeviceRoutes>;

    /// Lists the VIP services.
    fn list_services(&self) -> Call<'_, Vec<VipService>>;

    /// Reads one VIP service. [`Error::NotFound`] when there is none of this name.
    fn service<'a>(&'a self, name: &'a str) -> Call<'a, VipService>;

    /// Creates or replaces a VIP service. Addresses that are left out stay, or are given by the server.
    fn put_service<'a>(&'a self, service: &'a VipService) -> Call<'a, ()>;

    /// Deletes a VIP service. [`Error::NotFound`] when there is none of this name.
    fn delete_service<'a>(&'a self, name: &'a str) -> Call<'a, ()>;

    /// Reads how names are resolved.
    fn dns(&self) -> Call<'_, DnsConfig>;

    /// Replaces how names are resolved.
    fn set_dns<'a>(&'a self, dns: &'a DnsConfig) -> Call<'a, ()>;

    /// Reads the policy file.
    fn policy(&self) -> Call<'_, PolicyFile>;

    /// Replaces the policy file and returns it as stored.
    ///
    /// With `if_match`, only when the stored file still has that entity tag; else [`Error::Conflict`].
    fn set_policy<'a>(&'a self, hujson: &'a str, if_match: Option<&'a str>) -> Call<'a, PolicyFile>;
}
