//! The fixed names that people's manifests, other tools and older installations rely on.

/// Annotations that people set on their Services and Ingresses.
pub mod annotation {
    /// `true`: put the Service on the tailnet.
    pub const EXPOSE: &str = "tailscale.com/expose";
    /// The device's name on the tailnet.
    pub const HOSTNAME: &str = "tailscale.com/hostname";
    /// Comma-separated tags of the device.
    pub const TAGS: &str = "tailscale.com/tags";
    /// The ProxyGroup that serves the Service instead of an identity of its own.
    pub const PROXY_GROUP: &str = "tailscale.com/proxy-group";
    /// The ProxyClass of the proxy (label or annotation; the label wins).
    pub const PROXY_CLASS: &str = "tailscale.com/proxy-class";
    /// Egress: the tailnet address to reach.
    pub const TAILNET_IP: &str = "tailscale.com/tailnet-ip";
    /// Egress: the older name of [`TAILNET_IP`].
    pub const TAILNET_TARGET_IP: &str = "tailscale.com/ts-tailnet-target-ip";
    /// Egress: the tailnet name to reach.
    pub const TAILNET_FQDN: &str = "tailscale.com/tailnet-fqdn";
    /// Egress: which pods may use the Service, as [`crate::Sources`]; without it, all may.
    pub const EGRESS_FROM: &str = "tailwharf.dev/egress-from";
    /// `v2`: connections to backends begin with a header of the PROXY protocol, which tells who the client is.
    pub const PROXY_PROTOCOL: &str = "tailwharf.dev/proxy-protocol";
    /// On an Ingress: `true` shows it to the Internet, too.
    pub const FUNNEL: &str = "tailscale.com/funnel";
    /// On an Ingress: `true` answers plain HTTP with a redirection to HTTPS.
    pub const HTTP_REDIRECT: &str = "tailscale.com/http-redirect";
    /// On an Ingress: `enabled` serves the same in plain HTTP.
    pub const HTTP_ENDPOINT: &str = "tailscale.com/http-endpoint";
    /// On an Ingress: `true` leads traffic of the cluster through the device.
    pub const FORWARD_CLUSTER_TRAFFIC: &str =
        "tailscale.com/experimental-forward-cluster-traffic-via-ingress";
    /// On an Ingress: `true` serves the hosts of its own certificates alone, not the device's own name.
    pub const OWN_DOMAINS_ONLY: &str = "tailwharf.dev/own-domains-only";
    /// On an Ingress: what its backends speak, `http`, `https` or `h2c`.
    pub const BACKEND_PROTOCOL: &str = "tailwharf.dev/backend-protocol";
    /// On an Ingress: how long a backend may take to begin its answer, such as `30s` or `5m`.
    pub const RESPONSE_TIMEOUT: &str = "tailwharf.dev/response-timeout";
    /// On an Ingress: the longest body of a request, such as `10Mi`.
    pub const MAX_BODY_SIZE: &str = "tailwharf.dev/max-body-size";
    /// On an Ingress: `true` logs each request with who made it.
    pub const ACCESS_LOG: &str = "tailwharf.dev/access-log";
    /// `true`: clean up without the control server, which leaves the device there.
    pub const FORCE_REMOVAL: &str = "tailwharf.dev/force-removal";

    /// On a state Secret: the tags of its device, or of the auth key that waits for a device.
    pub const DEVICE_TAGS: &str = "tailwharf.dev/device-tags";
    /// On a state Secret: when its auth key was minted (RFC 3339).
    pub const KEY_MINTED_AT: &str = "tailwharf.dev/key-minted-at";
    /// On a state Secret: id of the auth key that went with the removal, until it is revoked for sure.
    pub const RELEASED_KEY: &str = "tailwharf.dev/released-key";
    /// On a state Secret: when the clean-up of its identity began (RFC 3339).
    pub const RELEASED_AT: &str = "tailwharf.dev/released-at";
    /// On every object tailwharf applies: a digest of what was applied.
    pub const APPLIED: &str = "tailwharf.dev/applied";
    /// On a StatefulSet of the Go operator: `true` once its pods have ended and its devices are tailwharf's.
    pub const HANDED_OVER: &str = "tailwharf.dev/handed-over";
    /// On what a migration stopped: how many pods it had.
    pub const REPLICAS_BEFORE: &str = "tailwharf.dev/replicas-before";
}

/// Labels on what tailwharf makes.
pub mod label {
    /// `true` on everything made by the operator.
    pub const MANAGED: &str = "tailscale.com/managed";
    /// Kind of the parent, see [`crate::ParentKind`].
    pub const PARENT_TYPE: &str = "tailscale.com/parent-resource-type";
    /// Name of the parent.
    pub const PARENT_NAME: &str = "tailscale.com/parent-resource";
    /// Namespace of the parent.
    pub const PARENT_NAMESPACE: &str = "tailscale.com/parent-resource-ns";
    /// The pool whose pods host the identity, or to which a pod or Lease belongs.
    pub const POOL: &str = "tailwharf.dev/pool";
    /// What a Service in the operator's namespace is for: [`super::EGRESS_SERVICE`].
    pub const SERVICE_TYPE: &str = "tailscale.com/svc-type";
}

/// The finalizer that keeps an exposed Service or Ingress until its device is gone.
pub const FINALIZER: &str = "tailscale.com/finalizer";
/// `spec.loadBalancerClass` of Services that ask for a tailnet device.
pub const LOAD_BALANCER_CLASS: &str = "tailscale";
/// Field manager of everything the operator applies.
pub const OPERATOR_FIELD_MANAGER: &str = "tailwharf-operator";
/// `reportingComponent` of the operator's events.
pub const EVENT_REPORTER: &str = "tailscale-operator";
/// Condition on an exposed Service.
pub const PROXY_READY: &str = "TailscaleProxyReady";
/// Condition on a Connector.
pub const CONNECTOR_READY: &str = "ConnectorReady";
/// Condition on a Connector: the tailnet lets it route what it advertises.
pub const ROUTES_APPROVED: &str = "RoutesApproved";
/// Condition on a Connector: it advertises addresses that mean something else in its own cluster.
pub const ROUTES_OVERLAP: &str = "RoutesOverlap";
/// Condition on a ProxyClass.
pub const PROXY_CLASS_READY: &str = "ProxyClassReady";
/// The pool that serves everything that names no other.
pub const DEFAULT_POOL: &str = "default";
/// Longest name of a pool, in bytes.
pub const MAX_POOL_NAME: usize = 40;
/// Longest value of a label, in bytes.
pub const MAX_LABEL: usize = 63;
/// Longest name of an [`crate::Identity`], in bytes: its Secret and the objects of other versions of the operator add suffixes to it.
pub const MAX_IDENTITY_NAME: usize = 52;
/// The pool of identities that nobody hosts: they only tell why their object gets no device. No pool of pods has this name.
pub const PARKED_POOL: &str = "none";
/// Most listeners of one identity.
pub const MAX_LISTENERS: usize = 256;
/// Most backends of one listener.
pub const MAX_BACKENDS: usize = 128;
/// Most targets of one egress Service.
pub const MAX_TARGETS: usize = 16;
/// Most ranges of addresses of pods that may use one egress Service.
pub const MAX_SOURCES: usize = 4096;
/// Most pods that an identity's status names as refused.
pub const MAX_REFUSALS: usize = 8;
/// The value of [`label::SERVICE_TYPE`] on what leads pods of the cluster to a proxy.
pub const EGRESS_SERVICE: &str = "egress";
/// The ports of a pool's pods that stand for ports of egress targets: below those that the kernel gives to connections.
pub const EGRESS_PORTS: std::ops::RangeInclusive<u16> = 10_000..=29_999;
/// The port of a pod to which all its ports lead that are not its own.
pub const ALL_PORTS: u16 = 9003;
/// The port of a pod's health and metrics endpoints.
pub const HEALTH_PORT: u16 = 9002;
/// The UDP port of direct paths of a pod all of whose ports lead elsewhere; the one that Tailscale's client takes.
pub const DIRECT_PORT: u16 = 41_641;
/// Most networks that one device routes.
pub const MAX_ROUTES: usize = 1000;
/// Most devices of one Connector.
pub const MAX_REPLICAS: usize = 50;
/// Most tags of one device.
pub const MAX_TAGS: usize = 32;
/// Most peers remembered in an identity's status.
pub const MAX_RECENT_PEERS: usize = 32;
