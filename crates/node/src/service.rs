//! Services (VIP Services): names and addresses that the control server gives to several nodes, of which this may be one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{self, Either};
use serde_json::Value;
use tailwharf_wire::tailcfg::CapMap;
use tokio::sync::watch;

use crate::api::SocketError;
use crate::control::Announced;
use crate::engine::Engine;
use crate::sync::lock;
use crate::tcp::{TcpListener, TcpStream};

/// The node capability that names the services which a node may host, with their addresses.
const SERVICE_HOST: &str = "service-host";

/// What the names of services begin with.
const PREFIX: &str = "svc:";

/// The longest label of a DNS name.
const MAX_LABEL: usize = 63;

/// The name of a service: `svc:` and a DNS label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

/// A text is not the name of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a service: expected svc: and a label of lower-case letters, digits and dashes"
)]
pub struct ParseServiceNameError(String);

impl FromStr for ServiceName {
    type Err = ParseServiceNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        match text.strip_prefix(PREFIX) {
            Some(label) if is_label(label) => Ok(Self(text.to_owned())),
            _ => Err(ParseServiceNameError(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The services that a node may host, from its own capabilities. What cannot be read is left out.
pub(crate) fn hosted(cap_map: &CapMap) -> BTreeMap<String, Vec<IpAddr>> {
    let mut services = BTreeMap::new();
    let maps = cap_map.get(SERVICE_HOST).into_iter().flatten();
    for (name, addresses) in maps.filter_map(Value::as_object).flatten() {
        let addresses = addresses.as_array().into_iter().flatten();
        let mut addresses: Vec<IpAddr> = addresses
            .filter_map(|address| address.as_str()?.parse().ok())
            .collect();
        addresses.sort_by_key(IpAddr::is_ipv6);
        services.insert(name.clone(), addresses);
    }
    services
}

/// Accepts TCP connections to one port of a service. Dropping it withdraws the port, and with its last port the service.
#[derive(Debug)]
pub struct ServiceListener {
    engine: Arc<Engine>,
    announced: watch::Sender<Announced>,
    name: ServiceName,
    port: u16,
    /// One per address of the service.
    bound: Mutex<BTreeMap<IpAddr, Arc<TcpListener>>>,
}

impl ServiceListener {
    pub(crate) fn bind(
        engine: &Arc<Engine>,
        announced: &watch::Sender<Announced>,
        name: &ServiceName,
        port: u16,
    ) -> Result<Self, SocketError> {
        let is_new = announced.send_if_modified(|announced| {
            let ports = announced.services.entry(name.clone()).or_default();
            ports.insert(port)
        });
        if !is_new {
            return Err(SocketError::PortInUse(port));
        }
        Ok(Self {
            engine: engine.clone(),
            announced: announced.clone(),
            name: name.clone(),
            port,
            bound: Mutex::default(),
        })
    }

    /// The next connection, and where it comes from. Waits while the control server has not given the service to this
    /// node.
    ///
    /// # Errors
    /// [`SocketError::Closed`] after the node was shut down, [`SocketError::PortInUse`] when the port is taken at an address
    /// of the service.
    pub async fn accept(&self) -> Result<(TcpStream, SocketAddr), SocketError> {
        let mut status = self.engine.watch_status();
        loop {
            let addresses = status
                .borrow_and_update()
                .services
                .get(&self.name.0)
                .cloned()
                .unwrap_or_default();
            let listeners = self.follow(&addresses)?;
            let accepted = match listeners.is_empty() {
                true => Either::Left(future::pending()),
                false => Either::Right(
                    future::select_all(listeners.iter().map(|listener| listener.accept().boxed()))
                        .map(|(accepted, ..)| accepted),
                ),
            };
            tokio::select! {
                accepted = accepted => return accepted,
                changed = status.changed() => if changed.is_err() { return Err(SocketError::Closed) },
                () = self.engine.closed() => return Err(SocketError::Closed),
            }
        }
    }

    /// Listens at these addresses and no others.
    fn follow(&self, addresses: &[IpAddr]) -> Result<Vec<Arc<TcpListener>>, SocketError> {
        let mut bound = lock(&self.bound);
        bound.retain(|address, _| addresses.contains(address));
        for address in addresses {
            if !bound.contains_key(address) {
                let listener = TcpListener::bind_at(&self.engine, Some(*address), self.port)?;
                bound.insert(*address, Arc::new(listener));
            }
        }
        Ok(bound.values().cloned().collect())
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.name
    }

    /// The port it accepts on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for ServiceListener {
    fn drop(&mut self) {
        self.announced.send_modify(|announced| {
            if let Some(ports) = announced.services.get_mut(&self.name) {
                ports.remove(&self.port);
                if ports.is_empty() {
                    announced.services.remove(&self.name);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_services() {
        assert_eq!(
            "svc:web-1".parse::<ServiceName>().unwrap().to_string(),
            "svc:web-1"
        );
        for wrong in ["", "web", "svc:", "svc:Web", "svc:-web", "svc:web-", "svc:a.b"] {
            assert!(wrong.parse::<ServiceName>().is_err(), "{wrong:?}");
        }
        assert!(format!("svc:{}", "a".repeat(64)).parse::<ServiceName>().is_err());
    }

    #[test]
    fn addresses_come_from_the_capability_and_junk_is_left_out() {
        let caps = |value: Value| CapMap::from([(SERVICE_HOST.to_owned(), vec![value])]);
        let services = hosted(&caps(
            json!({"svc:web": ["fd7a::5", "100.64.0.5"], "svc:new": []}),
        ));
        assert_eq!(
            services["svc:web"],
            [
                "100.64.0.5".parse::<IpAddr>().unwrap(),
                "fd7a::5".parse().unwrap()
            ]
        );
        assert!(services["svc:new"].is_empty());
        for junk in [json!(null), json!("svc:web"), json!([1]), json!(7)] {
            assert!(hosted(&caps(junk)).is_empty());
        }
        let odd = hosted(&caps(json!({"svc:a": null, "svc:b": ["x", 3, "100.64.0.9"]})));
        assert!(odd["svc:a"].is_empty() && odd["svc:b"].len() == 1);
    }
}
