//! A tailnet in memory, for tests of whatever uses [`ControlApi`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::error::Error;
use crate::network::{DeviceRoutes, DnsConfig, VipService};
use crate::secret::Secret;
use crate::types::{AuthKey, CreateKey, Device, DeviceFilter, DeviceId, KeyId, KeyInfo, PolicyFile};
use crate::{Call, ControlApi};

/// A call that a [`Fake`] was asked to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// [`ControlApi::verify`] or [`ControlApi::list_keys`].
    ListKeys,
    /// [`ControlApi::create_key`], with its tags.
    CreateKey(Vec<String>),
    /// [`ControlApi::delete_key`].
    DeleteKey(KeyId),
    /// [`ControlApi::device`].
    Device(DeviceId),
    /// [`ControlApi::list_devices`].
    ListDevices,
    /// [`ControlApi::set_device_tags`], with the tags.
    SetDeviceTags(DeviceId, Vec<String>),
    /// [`ControlApi::delete_device`].
    DeleteDevice(DeviceId),
    /// [`ControlApi::device_routes`].
    DeviceRoutes(DeviceId),
    /// [`ControlApi::set_device_routes`].
    SetDeviceRoutes(DeviceId),
    /// [`ControlApi::list_services`].
    ListServices,
    /// [`ControlApi::service`].
    Service(String),
    /// [`ControlApi::put_service`].
    PutService(String),
    /// [`ControlApi::delete_service`].
    DeleteService(String),
    /// [`ControlApi::dns`].
    Dns,
    /// [`ControlApi::set_dns`].
    SetDns,
    /// [`ControlApi::policy`].
    Policy,
    /// [`ControlApi::set_policy`].
    SetPolicy,
}

#[derive(Default)]
struct State {
    next: u32,
    keys: BTreeMap<KeyId, (Secret, CreateKey)>,
    devices: BTreeMap<DeviceId, Device>,
    routes: BTreeMap<DeviceId, DeviceRoutes>,
    services: BTreeMap<String, VipService>,
    dns: DnsConfig,
    policy: (u32, String),
    asked: Vec<Asked>,
    failures: VecDeque<Error>,
}

/// A control server in memory. It allows the tags that it was made with.
pub struct Fake {
    allowed_tags: BTreeSet<String>,
    state: Mutex<State>,
}

impl Fake {
    /// A tailnet without keys and devices, whose credentials may give `allowed_tags`.
    pub fn new<'a>(allowed_tags: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            allowed_tags: allowed_tags.into_iter().map(str::to_owned).collect(),
            state: Mutex::default(),
        }
    }

    /// Answers the next call with `error`. Several are used up one call each, in order.
    pub fn fail_next(&self, error: Error) {
        self.lock().failures.push_back(error);
    }

    /// Lets a device join with `key`, as a node would. `None` when the key is unknown or used up.
    pub fn join(&self, key: &Secret, hostname: &str) -> Option<Device> {
        let mut state = self.lock();
        let (id, request) = state.keys.iter().find(|(_, (secret, _))| secret == key)?;
        let (id, request) = (id.clone(), request.1.clone());
        if !request.reusable {
            state.keys.remove(&id);
        }
        state.next += 1;
        let number = state.next;
        let device = Device {
            id: DeviceId(format!("n{number}CNTRL")),
            name: format!("{hostname}.tail1234.ts.net"),
            hostname: hostname.to_owned(),
            node_key: format!("nodekey:{number:064x}"),
            addresses: vec![IpAddr::V4(Ipv4Addr::from(0x6440_0000 + number))],
            tags: request.tags,
            authorized: request.preauthorized,
            last_seen: None,
        };
        state.devices.insert(device.id.clone(), device.clone());
        Some(device)
    }

    /// The devices of the tailnet.
    pub fn devices(&self) -> Vec<Device> {
        self.lock().devices.values().cloned().collect()
    }

    /// The keys that can still be used.
    pub fn live_keys(&self) -> Vec<Secret> {
        self.lock()
            .keys
            .values()
            .map(|(secret, _)| secret.clone())
            .collect()
    }

    /// Every call so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// Why these tags cannot be given; `None` if they can.
    fn refusal(&self, tags: &[String]) -> Option<String> {
        let foreign: Vec<_> = tags
            .iter()
            .filter(|tag| !self.allowed_tags.contains(*tag))
            .cloned()
            .collect();
        (tags.is_empty() || !foreign.is_empty()).then(|| {
            format!(
                "requested tags [{}] are invalid or not permitted",
                foreign.join(" ")
            )
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the call, and answers it with a failure that was asked for or with what `answer` says.
    fn call<T: Send + 'static>(
        &self,
        asked: Asked,
        answer: impl FnOnce(&mut State) -> Result<T, Error>,
    ) -> Call<'_, T> {
        let mut state = self.lock();
        state.asked.push(asked);
        let outcome = match state.failures.pop_front() {
            Some(error) => Err(error),
            None => answer(&mut state),
        };
        Box::pin(std::future::ready(outcome))
    }
}

impl ControlApi for Fake {
    fn verify(&self) -> Call<'_, ()> {
        self.call(Asked::ListKeys, |_| Ok(()))
    }

    fn create_key<'a>(&'a self, request: &'a CreateKey) -> Call<'a, AuthKey> {
        let refusal = self.refusal(&request.tags);
        self.call(Asked::CreateKey(request.tags.clone()), move |state| {
            if let Some(message) = refusal {
                let tags = request.tags.clone();
                return Err(Error::KeyRefused { tags, message });
            }
            state.next += 1;
            let id = KeyId(format!("k{}CNTRL", state.next));
            let key = Secret::new(format!("tskey-auth-{id}-fake"));
            state.keys.insert(id.clone(), (key.clone(), request.clone()));
            Ok(AuthKey {
                id,
                key,
                expires: None,
            })
        })
    }

    fn list_keys(&self) -> Call<'_, Vec<KeyInfo>> {
        self.call(Asked::ListKeys, |state| {
            Ok(state.keys.keys().map(|id| KeyInfo { id: id.clone() }).collect())
        })
    }

    fn delete_key<'a>(&'a self, id: &'a KeyId) -> Call<'a, ()> {
        self.call(Asked::DeleteKey(id.clone()), |state| {
            match state.keys.remove(id) {
                Some(_) => Ok(()),
                None => Err(Error::NotFound {
                    what: format!("key {id}"),
                }),
            }
        })
    }

    fn device<'a>(&'a self, id: &'a DeviceId) -> Call<'a, Device> {
        self.call(Asked::Device(id.clone()), |state| {
            state.devices.get(id).cloned().ok_or_else(|| Error::NotFound {
                what: format!("device {id}"),
            })
        })
    }

    fn list_devices<'a>(&'a self, filter: &'a DeviceFilter) -> Call<'a, Vec<Device>> {
        self.call(Asked::ListDevices, |state| {
            Ok(state
                .devices
                .values()
                .filter(|device| filter.matches(device))
                .cloned()
                .collect())
        })
    }

    fn set_device_tags<'a>(&'a self, id: &'a DeviceId, tags: &'a [String]) -> Call<'a, ()> {
        let refusal = self.refusal(tags);
        self.call(Asked::SetDeviceTags(id.clone(), tags.to_vec()), move |state| {
            let device = state.devices.get_mut(id).ok_or_else(|| Error::NotFound {
                what: format!("device {id}"),
            })?;
            match refusal {
                Some(message) => Err(Error::Invalid { message }),
                None => {
                    device.tags = tags.to_vec();
                    Ok(())
                }
            }
        })
    }

    fn delete_device<'a>(&'a self, id: &'a DeviceId) -> Call<'a, ()> {
        self.call(Asked::DeleteDevice(id.clone()), |state| {
            match state.devices.remove(id) {
                Some(_) => Ok(()),
                None => Err(Error::NotFound {
                    what: format!("device {id}"),
                }),
            }
        })
    }

    fn device_routes<'a>(&'a self, id: &'a DeviceId) -> Call<'a, DeviceRoutes> {
        self.call(Asked::DeviceRoutes(id.clone()), |state| {
            state.routes_of(id).map(|routes| routes.clone())
        })
    }

    fn set_device_routes<'a>(&'a self, id: &'a DeviceId, routes: &'a [IpNet]) -> Call<'a, DeviceRoutes> {
        self.call(Asked::SetDeviceRoutes(id.clone()), |state| {
            let stored = state.routes_of(id)?;
            let advertised = stored.advertised.iter();
            stored.enabled = advertised
                .filter(|route| routes.contains(route))
                .copied()
                .collect();
            Ok(stored.clone())
        })
    }

    fn list_services(&self) -> Call<'_, Vec<VipService>> {
        self.call(Asked::ListServices, |state| {
            Ok(state.services.values().cloned().collect())
        })
    }

    fn service<'a>(&'a self, name: &'a str) -> Call<'a, VipService> {
        self.call(Asked::Service(name.to_owned()), |state| {
            state.services.get(name).cloned().ok_or_else(|| no_service(name))
        })
    }

    fn put_service<'a>(&'a self, service: &'a VipService) -> Call<'a, ()> {
        let refusal = self.refusal(&service.tags).filter(|_| !service.tags.is_empty());
        self.call(Asked::PutService(service.name.clone()), move |state| {
            if let Some(message) = refusal {
                return Err(Error::Invalid { message });
            }
            if !service.name.starts_with("svc:") {
                let message = format!("invalid service name {}", service.name);
                return Err(Error::Invalid { message });
            }
            let mut service = service.clone();
            if service.addresses.is_empty() {
                state.next += 1;
                let given = vec![IpAddr::V4(Ipv4Addr::from(0x6440_0000 + state.next))];
                let former = state.services.get(&service.name);
                service.addresses = former.map_or(given, |former| former.addresses.clone());
            }
            state.services.insert(service.name.clone(), service);
            Ok(())
        })
    }

    fn delete_service<'a>(&'a self, name: &'a str) -> Call<'a, ()> {
        self.call(Asked::DeleteService(name.to_owned()), |state| {
            let removed = state.services.remove(name);
            removed.map(drop).ok_or_else(|| no_service(name))
        })
    }

    fn dns(&self) -> Call<'_, DnsConfig> {
        self.call(Asked::Dns, |state| Ok(state.dns.clone()))
    }

    fn set_dns<'a>(&'a self, dns: &'a DnsConfig) -> Call<'a, ()> {
        self.call(Asked::SetDns, |state| {
            state.dns = dns.clone();
            Ok(())
        })
    }

    fn policy(&self) -> Call<'_, PolicyFile> {
        self.call(Asked::Policy, |state| Ok(policy_file(&state.policy)))
    }

    fn set_policy<'a>(&'a self, hujson: &'a str, if_match: Option<&'a str>) -> Call<'a, PolicyFile> {
        self.call(Asked::SetPolicy, |state| {
            if if_match.is_some_and(|etag| etag != etag_of(state.policy.0)) {
                return Err(Error::Conflict {
                    message: "precondition failed, invalid old hash".to_owned(),
                });
            }
            state.policy = (state.policy.0 + 1, hujson.to_owned());
            Ok(policy_file(&state.policy))
        })
    }
}

impl State {
    fn routes_of(&mut self, id: &DeviceId) -> Result<&mut DeviceRoutes, Error> {
        if !self.devices.contains_key(id) {
            return Err(Error::NotFound {
                what: format!("device {id}"),
            });
        }
        Ok(self.routes.entry(id.clone()).or_default())
    }
}

fn no_service(name: &str) -> Error {
    Error::NotFound {
        what: format!("service {name}"),
    }
}

fn policy_file((version, hujson): &(u32, String)) -> PolicyFile {
    PolicyFile {
        hujson: hujson.clone(),
        etag: Some(etag_of(*version)),
    }
}

fn etag_of(version: u32) -> String {
    format!("\"{version}\"")
}
