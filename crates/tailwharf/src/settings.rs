//! From arguments to the settings of each process: files are read, texts become types, defaults are decided here and nowhere else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tailwharf_apiproxy::{
    CertificateSource, FileSettings, Output, SystemGroups, UpstreamSettings, WebhookSettings,
};
use tailwharf_control_api::{ClientConfig, Credentials, Secret};
use tailwharf_kube_types::names::API_SERVER_PROXY_POOL;
use tailwharf_kube_types::values::{Hostname, Tag};
use tailwharf_node::run::LocalSocket;
use tailwharf_node::{AuthKey, FileStore, HttpProxies, NodeConfig};
use tailwharf_plan::PoolSettings;
use tailwharf_proxy::Limits;
use url::Url;

use crate::apiproxy::ApiServerProxy;
use crate::args::{
    ApiServerProxyArgs, ApiServerProxyMode, MemberArgs, NodeArgs, OperatorArgs, ProxyArgs, TAILSCALE,
};

/// The control server of Tailscale's service has its API at another address.
const TAILSCALE_CONTROL: &str = "controlplane.tailscale.com";
const TAILSCALE_API: &str = "https://api.tailscale.com";

pub(crate) fn operator(args: OperatorArgs, log: &str) -> Result<tailwharf_operator::Settings> {
    let credentials = match args.client_id.filter(|id| !id.is_empty()) {
        Some(id) => Credentials::Workload {
            id,
            token_file: args.token_file,
        },
        None => Credentials::OAuthClient {
            id: file(&args.client_id_file, "id")?,
            secret: Secret::new(file(&args.client_secret_file, "secret")?),
        },
    };
    let api = api_of(&args.login_server, args.api_url)?;
    if args.pool_replicas == 0 {
        bail!("a pool needs at least one pod: set --pool-replicas or TAILWHARF_POOL_REPLICAS to 1 or more");
    }
    let cluster_domain = cluster_domain(&args.namespace);
    let plan = tailwharf_plan::Settings {
        namespace: args.namespace,
        cluster_domain,
        login_server: args.login_server.as_str().trim_end_matches('/').to_owned(),
        default_tags: tags(&args.proxy_tags).context("PROXY_TAGS")?,
        operator_hostname: args.hostname.parse::<Hostname>().context("OPERATOR_HOSTNAME")?,
        operator_tags: tags(&args.operator_tags).context("OPERATOR_INITIAL_TAGS")?,
        api_server_proxy: match (args.apiserver_proxy, args.auth_proxy) {
            (ApiServerProxyMode::Off, legacy) => legacy,
            (_, false) => true,
            (_, true) => {
                bail!("APISERVER_PROXY and AUTH_PROXY are both set; AUTH_PROXY is the old name, remove it")
            }
        },
        default_load_balancer: args.default_load_balancer,
        ingress_class: args.ingress_class,
        acme_directory: args.acme_directory.map(String::from),
        default_class: args.default_class.filter(|name| !name.is_empty()),
        watch_namespaces: args
            .watch_namespaces
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect(),
        releasing: false,
        pool: PoolSettings {
            replicas: args.pool_replicas,
            image: args.proxy_image,
            logging: log.to_owned(),
            pull_secrets: args.pull_secrets,
        },
    };
    Ok(tailwharf_operator::Settings {
        plan,
        control: ClientConfig::new(api, credentials),
        replica: args.pod_name,
        health_listen: args.listen,
    })
}

/// The API of a control server, unless another is given.
pub(crate) fn api_of(login_server: &Url, given: Option<Url>) -> Result<Url> {
    Ok(match given {
        Some(url) => url,
        None if login_server.host_str() == Some(TAILSCALE_CONTROL) => Url::parse(TAILSCALE_API)?,
        None => login_server.clone(),
    })
}

/// The domain of the cluster's names, from where this pod looks for names.
fn cluster_domain(namespace: &str) -> String {
    let file = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    searched_domain(&file, namespace).unwrap_or_else(|| "cluster.local".to_owned())
}

/// The domain of a `resolv.conf` of a pod: it looks for names in `NAMESPACE.svc.DOMAIN`, `svc.DOMAIN` and `DOMAIN`.
fn searched_domain(resolv_conf: &str, namespace: &str) -> Option<String> {
    let mut searched = resolv_conf
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("search "))?
        .split_whitespace()
        .map(|domain| domain.trim_end_matches('.'));
    let (own, services, domain) = (searched.next()?, searched.next()?, searched.next()?);
    let is_of_cluster = services == format!("svc.{domain}") && own == format!("{namespace}.{services}");
    is_of_cluster.then(|| domain.to_owned())
}

pub(crate) fn proxy(args: ProxyArgs) -> Result<tailwharf_proxy::Settings> {
    member(args.member, args.pool)
}

/// The pod of the API-server proxy: what hosts its device, and what it serves there.
pub(crate) fn api_server_proxy(
    args: ApiServerProxyArgs,
) -> Result<(tailwharf_proxy::Settings, ApiServerProxy)> {
    let (host, port) = match args.upstream {
        Some(upstream) => endpoint(&upstream)?,
        None => in_cluster()?,
    };
    let token_file = match args.mode {
        ApiServerProxyMode::Auth => Some(args.token_file),
        ApiServerProxyMode::NoAuth => None,
        ApiServerProxyMode::Off => {
            bail!("APISERVER_PROXY is false: there is nothing to run; set it to true or noauth")
        }
    };
    let audit = match args.audit.as_str() {
        "none" => None,
        "-" => Some(Output::Stdout),
        path => Some(Output::File(FileSettings {
            path: path.into(),
            max_bytes: args.audit_max_size << 20,
            keep: args.audit_keep,
        })),
    };
    let certificate = match (args.cert_file, args.key_file) {
        (Some(chain), Some(key)) => CertificateSource::Files { chain, key },
        _ => CertificateSource::Device {
            directory: args.acme_directory.map(String::from),
        },
    };
    let webhook = match (args.audit_webhook, args.state_dir) {
        (None, _) => None,
        (Some(_), None) => bail!(
            "audit lines that wait for the webhook need a folder: set --state-dir or APISERVER_PROXY_STATE_DIR"
        ),
        (Some(url), Some(state)) => Some(WebhookSettings {
            url,
            ca_file: args.audit_webhook_ca_file,
            token_file: args.audit_webhook_token_file,
            folder: state.join("audit"),
            max_bytes: args.audit_webhook_max_size << 20,
        }),
    };
    let settings = tailwharf_apiproxy::Settings {
        upstream: UpstreamSettings {
            host,
            port,
            ca_file: args.upstream_ca,
            token_file,
        },
        system_groups: SystemGroups::only(args.system_groups),
        extras: args.extras,
        streams_per_user: args.streams_per_user,
        review_interval: Duration::from_secs(args.review_seconds),
        audit,
        webhook,
    };
    let member = member(args.member, API_SERVER_PROXY_POOL.to_owned())?;
    Ok((member, ApiServerProxy::new(settings, certificate)))
}

/// The API server of the cluster in which this process runs.
#[expect(clippy::disallowed_methods, reason = "this is the settings module")]
fn in_cluster() -> Result<(String, u16)> {
    let variable = |name: &str| {
        std::env::var(name).with_context(|| format!("{name} is not set; run in a pod or give --upstream"))
    };
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    Ok((host, port.parse().context("KUBERNETES_SERVICE_PORT")?))
}

fn endpoint(text: &str) -> Result<(String, u16)> {
    let (host, port) = text
        .rsplit_once(':')
        .with_context(|| format!("{text:?} is not HOST:PORT"))?;
    Ok((
        host.to_owned(),
        port.parse().with_context(|| format!("the port of {text:?}"))?,
    ))
}

fn member(args: MemberArgs, pool: String) -> Result<tailwharf_proxy::Settings> {
    Ok(tailwharf_proxy::Settings {
        pod_name: args.pod_name,
        pod_uid: args.pod_uid,
        pod_addresses: args.pod_ips,
        namespace: args.namespace,
        pool,
        listen: args.listen,
        extra_ca_pem: None,
        offloads: args.offloads.no_offload,
        http_proxies: http_proxies()?,
        udp_port: args.udp_port,
        relay_only: args.relay_only,
        limits: Limits::default(),
    })
}

pub(crate) fn node(args: NodeArgs) -> Result<tailwharf_node::run::Settings> {
    let stored = match &args.state {
        Some(path) => FileStore::stored_login(path)?,
        None => None,
    };
    let login_server = match (args.login_server, &stored) {
        (Some(server), _) => server,
        (None, Some(stored)) => stored.control_url.clone(),
        (None, None) => Url::parse(TAILSCALE)?,
    };
    let stored_name = stored
        .map(|stored| stored.hostname)
        .filter(|name| !name.is_empty());
    let hostname = match args.hostname.or(stored_name) {
        Some(name) => name,
        None => fs::read_to_string("/etc/hostname")
            .context("the machine has no name in /etc/hostname; give one with --hostname")?
            .trim()
            .to_owned(),
    };
    Ok(tailwharf_node::run::Settings {
        node: NodeConfig {
            auth_key: args.auth_key.as_deref().and_then(AuthKey::new),
            tags: args.tags,
            ephemeral: args.ephemeral,
            force_reauth: args.force_reauth,
            udp_port: args.port,
            endpoints: args.endpoints,
            app_connector: args.advertise_connector,
            ..NodeConfig::new(login_server, hostname)
        },
        state_file: args.state,
        ca_file: args.ca_file,
        http_proxies: http_proxies()?,
        socks5_listen: args.socks5,
        http_proxy_listen: args.http_proxy,
        dns_listen: args.dns,
        forwards: args.forwards,
        serves: args.serves,
        tun: args.tun,
        system: args.system.settings(),
        offloads: args.offloads.no_offload,
        direct: !args.relay_only,
        socket: LocalSocket {
            path: socket(args.socket.socket.as_deref()),
            required: args.socket.socket.is_some(),
        },
        logout_on_exit: args.logout_on_exit,
    })
}

/// The HTTP proxies that the environment names.
#[expect(clippy::disallowed_methods, reason = "this is the settings module")]
fn http_proxies() -> Result<HttpProxies> {
    Ok(HttpProxies::from_variables(|name| std::env::var(name).ok())?)
}

/// The socket of a node: the one that is given, or the usual one of this user.
pub(crate) fn socket(given: Option<&Path>) -> PathBuf {
    let usual = || {
        let directory =
            std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| PathBuf::from("/run"), PathBuf::from);
        directory.join("tailwharf.sock")
    };
    given.map_or_else(usual, Path::to_owned)
}

/// The kubeconfig to write: of several that `KUBECONFIG` names the first that exists, else the last; by default that in the home folder.
#[expect(clippy::disallowed_methods, reason = "this is the settings module")]
pub(crate) fn kubeconfig() -> Result<PathBuf> {
    let listed = std::env::var("KUBECONFIG").unwrap_or_default();
    let paths: Vec<PathBuf> = listed
        .split(':')
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .collect();
    if let Some(path) = paths.iter().find(|path| path.is_file()).or_else(|| paths.last()) {
        return Ok(path.clone());
    }
    let home = std::env::var("HOME").context("HOME is not set; name the kubeconfig by KUBECONFIG")?;
    Ok(Path::new(&home).join(".kube/config"))
}

/// Tags without repetition, sorted.
fn tags(texts: &[String]) -> Result<Vec<Tag>> {
    let given = texts
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty());
    let tags = given.map(str::parse).collect::<Result<BTreeSet<Tag>, _>>()?;
    Ok(tags.into_iter().collect())
}

fn file(path: &Path, what: &str) -> Result<String> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("the {what} of the OAuth client is read from {}", path.display()))?;
    let text = text.trim();
    if text.is_empty() {
        bail!(
            "{} is empty; it must hold the {what} of the OAuth client",
            path.display()
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_sorted_and_told_apart_from_other_words() {
        let sorted = tags(&["tag:b".into(), " tag:a ".into(), "tag:b".into(), String::new()]).expect("tags");
        assert_eq!(
            sorted.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["tag:a", "tag:b"]
        );
        assert!(tags(&["b".into()]).is_err());
    }

    #[test]
    fn the_cluster_domain_is_where_pods_look_for_names() {
        let file = "nameserver 10.96.0.10\nsearch tailscale.svc.corp.test svc.corp.test corp.test example.com\noptions ndots:5\n";
        assert_eq!(searched_domain(file, "tailscale").as_deref(), Some("corp.test"));
        assert_eq!(searched_domain(file, "other"), None);
        assert_eq!(searched_domain("search example.com\n", "tailscale"), None);
    }

    #[test]
    fn an_empty_credential_file_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("client_id");
        fs::write(&path, " \n").expect("written");
        let error = file(&path, "id").expect_err("refused");
        assert!(error.to_string().contains("client_id is empty"), "{error}");
    }
}
