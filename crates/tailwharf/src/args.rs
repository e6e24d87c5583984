//! The command line, declared. What the values mean for a process is resolved in [`crate::settings`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use tailwharf_coordinator::admin::cli::Command as AdminCommand;
use tailwharf_node::OffloadSwitches;
use tailwharf_node::run::{Forward, Serve};
use tailwharf_node::tun::TunSettings;
use tailwharf_recorder::PublicKey;
use url::Url;

use crate::access::AccessArgs;
use crate::objects::{ExplainArgs, LogsArgs};

/// The control server of Tailscale's service.
pub(crate) const TAILSCALE: &str = "https://controlplane.tailscale.com";

/// Connects Kubernetes and a tailnet.
#[derive(Debug, Parser)]
#[command(
    name = "tailwharf",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// What to log: a level, or a filter such as `info,tailwharf_node=debug`
    #[arg(long, global = true, env = "TAILWHARF_LOG", default_value = "info")]
    pub(crate) log: String,
    /// How to log
    #[arg(long, global = true, env = "TAILWHARF_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the controllers of a cluster
    Operator(OperatorArgs),
    /// Run a pod of the API-server proxy: kubectl through the tailnet
    ApiserverProxy(ApiServerProxyArgs),
    /// Write settings of other programs
    Configure(ConfigureArgs),
    /// Run a pod of a pool, which hosts devices of the tailnet
    Proxy(ProxyArgs),
    /// Lead all ports of a pod to its proxy; the first container of such a pod runs it
    #[command(hide = true)]
    SetUp(SetUpArgs),
    /// Run the built-in control server, or administer it
    Coordinator(CoordinatorArgs),
    /// Join this machine to a tailnet, without root
    Node(NodeArgs),
    /// Answer DNS queries of pods for names of the tailnet
    Nameserver(NameserverArgs),
    /// Store recordings of sessions on a device of the tailnet, list them, or play one
    Recorder(Box<RecorderArgs>),
    /// Tell how a running node and its peers are, or with --cluster how everything of a cluster is
    Status(StatusArgs),
    /// Look for what is wrong with an installation in a cluster, and say what to do; fails when there is something
    Doctor(DoctorArgs),
    /// Tell how a Service or Ingress of a cluster reaches the tailnet, and where that ends
    Explain(ExplainArgs),
    /// Print what is logged of the device of a Service or Ingress, by the pod that hosts it
    Logs(LogsArgs),
    /// Tell which groups a person gets at a cluster, from which devices, by which grants, and why not
    Access(AccessArgs),
    /// Let a running node ping a peer, and tell the way of the answers
    Ping(PingArgs),
    /// Take a namespace over from Tailscale's operator, or give it back: devices keep names, addresses and keys
    Migrate(MigrateArgs),
}

/// Which running node is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct SocketArgs {
    /// Socket of the node; by default one in the user's runtime directory, or /run/tailwharf.sock for root
    #[arg(long, env = "TAILWHARF_SOCKET")]
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    /// Tell of a cluster instead: pools, their pods and all devices; fails when one is not ready
    #[arg(long, conflicts_with = "output")]
    pub(crate) cluster: bool,
    /// Go on and tell of each change
    #[arg(long, requires = "cluster")]
    pub(crate) watch: bool,
    /// Namespace of the operator
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "tailscale")]
    pub(crate) operator_namespace: String,
    /// How to print
    #[arg(long, value_enum, default_value_t = OutputFormat::Table)]
    pub(crate) output: OutputFormat,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Namespace of the operator
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "tailscale")]
    pub(crate) operator_namespace: String,
    /// Use the operator's credentials, too: ask the control server for an auth key with the tags of its devices, and revoke it
    #[arg(long)]
    pub(crate) credentials: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MigrateArgs {
    #[command(subcommand)]
    pub(crate) command: MigrateCommand,
    /// Namespace of both operators
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "tailscale", global = true)]
    pub(crate) operator_namespace: String,
    /// Objects whose devices move at a time
    #[arg(long, default_value_t = 4, global = true)]
    pub(crate) parallel: usize,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum MigrateCommand {
    /// Print what would be done, and what has to be solved before; changes nothing
    Plan {
        /// Of the way back
        #[arg(long)]
        back: bool,
    },
    /// Move everything to tailwharf
    Go {
        /// Move the rest although there are objects that tailwharf does not serve
        #[arg(long)]
        leave_unserved: bool,
        /// Keep what Tailscale's operator made, with no pods
        #[arg(long)]
        keep_old: bool,
    },
    /// Move everything to Tailscale's operator
    Back,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PingArgs {
    /// The peer, by name or address on the tailnet
    pub(crate) peer: String,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    /// What to ping with
    #[arg(long, value_enum, default_value_t = PingKind::Disco)]
    pub(crate) kind: PingKind,
    /// How many pings to send at most
    #[arg(long, short = 'c', default_value_t = 10)]
    pub(crate) count: u32,
    /// Go on when an answer has come by a direct path
    #[arg(long)]
    pub(crate) all: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = OutputFormat::Table)]
    pub(crate) output: OutputFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PingKind {
    /// Between the path layers: needs no session, tells the path
    Disco,
    /// Through the tunnel, answered by the node itself
    Tsmp,
    /// Through the tunnel and the peer's packet filter
    Icmp,
}

/// The environment variables are those of Tailscale's operator.
#[derive(Debug, clap::Args)]
pub(crate) struct OperatorArgs {
    /// Namespace of the operator and of everything that it makes
    #[arg(long, env = "OPERATOR_NAMESPACE", default_value = "tailscale")]
    pub(crate) namespace: String,
    /// Control server of the tailnet; its API is at the same place
    #[arg(long, env = "OPERATOR_LOGIN_SERVER", default_value = TAILSCALE, value_parser = server)]
    pub(crate) login_server: Url,
    /// API of the tailnet, where it is not at the control server
    #[arg(long, env = "OPERATOR_API_URL", value_parser = server)]
    pub(crate) api_url: Option<Url>,
    /// Id of a client of the tailnet that the tokens of this operator's ServiceAccount are trusted for; then no secret is needed
    #[arg(long, env = "CLIENT_ID")]
    pub(crate) client_id: Option<String>,
    /// File with such a token
    #[arg(
        long,
        env = "TAILWHARF_TOKEN_FILE",
        default_value = "/var/run/secrets/tailscale/serviceaccount/token"
    )]
    pub(crate) token_file: PathBuf,
    /// File with the id of the OAuth client
    #[arg(long, env = "CLIENT_ID_FILE", default_value = "/oauth/client_id")]
    pub(crate) client_id_file: PathBuf,
    /// File with the secret of the OAuth client
    #[arg(long, env = "CLIENT_SECRET_FILE", default_value = "/oauth/client_secret")]
    pub(crate) client_secret_file: PathBuf,
    /// Host name of the operator's own device
    #[arg(long, env = "OPERATOR_HOSTNAME", default_value = "tailscale-operator")]
    pub(crate) hostname: String,
    /// Tags of the operator's own device
    #[arg(
        long,
        env = "OPERATOR_INITIAL_TAGS",
        default_value = "tag:k8s-operator",
        value_delimiter = ','
    )]
    pub(crate) operator_tags: Vec<String>,
    /// Tags of exposed devices that ask for none
    #[arg(long, env = "PROXY_TAGS", default_value = "tag:k8s", value_delimiter = ',')]
    pub(crate) proxy_tags: Vec<String>,
    /// Image of the proxy pods
    #[arg(long, env = "PROXY_IMAGE")]
    pub(crate) proxy_image: String,
    /// Secrets of the namespace with credentials for the registry of that image
    #[arg(long, env = "TAILWHARF_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub(crate) pull_secrets: Vec<String>,
    /// Pods in the default pool
    #[arg(long, env = "TAILWHARF_POOL_REPLICAS", default_value_t = 2)]
    pub(crate) pool_replicas: u16,
    /// Whether the API-server proxy is on: true or noauth; its own pods say how it works
    #[arg(long, env = "APISERVER_PROXY", value_enum, default_value_t = ApiServerProxyMode::Off)]
    pub(crate) apiserver_proxy: ApiServerProxyMode,
    /// Older name of APISERVER_PROXY=true
    #[arg(long, env = "AUTH_PROXY", hide = true, default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) auth_proxy: bool,
    /// Take Services of type LoadBalancer that name no class, too
    #[arg(long, env = "OPERATOR_DEFAULT_LOAD_BALANCER", default_value_t = false, action = clap::ArgAction::Set)]
    pub(crate) default_load_balancer: bool,
    /// Class of the Ingresses that get a device
    #[arg(long, env = "OPERATOR_INGRESS_CLASS_NAME", default_value = "tailscale")]
    pub(crate) ingress_class: String,
    /// Directory of the ACME server for Ingresses; by default that of the control server, or of Let's Encrypt where it has none
    #[arg(long, env = "OPERATOR_ACME_DIRECTORY")]
    pub(crate) acme_directory: Option<Url>,
    /// ProxyClass of Services and Ingresses that name none
    #[arg(long, env = "PROXY_DEFAULT_CLASS")]
    pub(crate) default_class: Option<String>,
    /// Namespaces whose Services and Ingresses are served, with commas between several; all if none is named
    #[arg(long, env = "OPERATOR_WATCH_NAMESPACES", value_delimiter = ',')]
    pub(crate) watch_namespaces: Vec<String>,
    /// Name of this pod; part of its claim to lead
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: String,
    /// Leave the cluster: stop the operators of this Deployment, remove every device and what was made for it, and end
    #[arg(long, value_name = "DEPLOYMENT")]
    pub(crate) release_all: Option<String>,
    /// Where health and metrics are served
    #[arg(long, env = "OPERATOR_LISTEN", default_value = "[::]:9001")]
    pub(crate) listen: SocketAddr,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ProxyArgs {
    /// The pool that this pod belongs to
    #[arg(long, env = "TAILWHARF_POOL", default_value = "default")]
    pub(crate) pool: String,
    #[command(flatten)]
    pub(crate) member: MemberArgs,
}

/// Which ports of a pod lead to its proxy.
#[derive(Debug, clap::Args)]
pub(crate) struct SetUpArgs {
    /// The port of the proxy
    #[arg(long)]
    pub(crate) to: u16,
    /// TCP port that stays as it is
    #[arg(long)]
    pub(crate) keep_tcp: u16,
    /// UDP port that stays as it is
    #[arg(long)]
    pub(crate) keep_udp: u16,
}

/// A pod that hosts devices.
#[derive(Debug, clap::Args)]
pub(crate) struct MemberArgs {
    /// Namespace of the pool
    #[arg(long, env = "POD_NAMESPACE")]
    pub(crate) namespace: String,
    /// Name of this pod; also that of its Lease
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: String,
    /// Unique id of this pod
    #[arg(long, env = "POD_UID")]
    pub(crate) pod_uid: String,
    /// Addresses of this pod, at which pods of the cluster find what it reaches on the tailnet
    #[arg(long, env = "POD_IPS", value_delimiter = ',')]
    pub(crate) pod_ips: Vec<IpAddr>,
    /// Where health and metrics are served
    #[arg(long, env = "PROXY_LISTEN", default_value = "[::]:9002")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) offloads: OffloadArgs,
    /// UDP port of direct paths, for the first device; by default each has one of its own
    #[arg(long, env = "TAILWHARF_UDP_PORT")]
    pub(crate) udp_port: Option<u16>,
    /// Look for no direct paths to peers: all packets go through relays
    #[arg(long, env = "TAILWHARF_RELAY_ONLY")]
    pub(crate) relay_only: bool,
}

/// How the API-server proxy works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ApiServerProxyMode {
    /// It is not there
    #[value(name = "false", alias = "")]
    Off,
    /// Callers are who the tailnet says, with the groups that its policy grants
    #[value(name = "true", alias = "auth")]
    Auth,
    /// Callers bring credentials of their own
    #[value(name = "noauth")]
    NoAuth,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApiServerProxyArgs {
    #[command(flatten)]
    pub(crate) member: MemberArgs,
    /// How callers are known to the API server: true (by the tailnet) or noauth (by credentials of their own)
    #[arg(long, env = "APISERVER_PROXY", value_enum, default_value_t = ApiServerProxyMode::Auth)]
    pub(crate) mode: ApiServerProxyMode,
    /// API server, as host:port; that of the cluster if not given
    #[arg(long, env = "APISERVER_PROXY_UPSTREAM", value_name = "HOST:PORT")]
    pub(crate) upstream: Option<String>,
    /// Certificate authorities (PEM) of the API server
    #[arg(
        long,
        env = "APISERVER_PROXY_CA_FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub(crate) upstream_ca: PathBuf,
    /// Token of the account that may impersonate and do nothing else
    #[arg(
        long,
        env = "APISERVER_PROXY_TOKEN_FILE",
        default_value = "/var/run/secrets/tailwharf/impersonator/token"
    )]
    pub(crate) token_file: PathBuf,
    /// Groups of the cluster itself that the tailnet policy may grant
    #[arg(
        long,
        env = "APISERVER_PROXY_SYSTEM_GROUPS",
        default_value = "system:masters",
        value_delimiter = ','
    )]
    pub(crate) system_groups: Vec<String>,
    /// Make device and request a part of the user (extra); the account must be allowed to
    #[arg(long, env = "APISERVER_PROXY_EXTRAS", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) extras: bool,
    /// Watches and sessions that one user may have open
    #[arg(long, env = "APISERVER_PROXY_STREAMS_PER_USER", default_value_t = 2048)]
    pub(crate) streams_per_user: usize,
    /// Seconds between two looks at whether what is open is still granted
    #[arg(long, env = "APISERVER_PROXY_REVIEW_SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) review_seconds: u64,
    /// Certificate (PEM) to show instead of one for the device's name
    #[arg(long, env = "APISERVER_PROXY_CERT_FILE", requires = "key_file")]
    pub(crate) cert_file: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, env = "APISERVER_PROXY_KEY_FILE", requires = "cert_file")]
    pub(crate) key_file: Option<PathBuf>,
    /// Directory of the ACME server; by default that of the control server, or of Let's Encrypt where it has none
    #[arg(long, env = "APISERVER_PROXY_ACME_DIRECTORY")]
    pub(crate) acme_directory: Option<Url>,
    /// Folder that keeps what has to outlive the process: audit lines that wait for their webhook
    #[arg(long, env = "APISERVER_PROXY_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where the audit log goes: a file, - for standard output, or none
    #[arg(long, env = "APISERVER_PROXY_AUDIT", default_value = "-")]
    pub(crate) audit: String,
    /// Largest audit file, in MiB
    #[arg(long, env = "APISERVER_PROXY_AUDIT_MAX_SIZE", default_value_t = 100)]
    pub(crate) audit_max_size: u64,
    /// Older audit files that are kept
    #[arg(long, env = "APISERVER_PROXY_AUDIT_KEEP", default_value_t = 5)]
    pub(crate) audit_keep: u32,
    /// HTTPS URL to which audit lines are sent besides, in the form of Kubernetes' audit webhooks; needs APISERVER_PROXY_STATE_DIR
    #[arg(long, env = "APISERVER_PROXY_AUDIT_WEBHOOK", value_name = "URL")]
    pub(crate) audit_webhook: Option<Url>,
    /// Certificate authorities (PEM) of the webhook; those of the system if not given
    #[arg(long, env = "APISERVER_PROXY_AUDIT_WEBHOOK_CA_FILE", value_name = "FILE")]
    pub(crate) audit_webhook_ca_file: Option<PathBuf>,
    /// Token to send to the webhook
    #[arg(long, env = "APISERVER_PROXY_AUDIT_WEBHOOK_TOKEN_FILE", value_name = "FILE")]
    pub(crate) audit_webhook_token_file: Option<PathBuf>,
    /// Most lines that wait for the webhook, in MiB; the oldest are lost first
    #[arg(long, env = "APISERVER_PROXY_AUDIT_WEBHOOK_MAX_SIZE", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) audit_webhook_max_size: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ConfigureArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigureCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigureCommand {
    /// Let kubectl reach a cluster through its API-server proxy
    Kubeconfig(KubeconfigArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct KubeconfigArgs {
    /// The cluster: the name under which the tailnet publishes it, or its proxy by name on the tailnet, short or full, by address or by URL
    #[arg(required_unless_present_any = ["all", "list"])]
    pub(crate) target: Option<String>,
    /// All clusters that the tailnet publishes, and all proxies that this machine sees; the current context stays
    #[arg(long, conflicts_with_all = ["target", "context"])]
    pub(crate) all: bool,
    /// Print these clusters, and write nothing
    #[arg(long, conflicts_with_all = ["target", "all", "context", "keep_current", "print"])]
    pub(crate) list: bool,
    /// Use HTTP, where the tailnet has no certificates
    #[arg(long)]
    pub(crate) http: bool,
    /// Name of the context; that of the cluster, or the proxy's full name, if not given
    #[arg(long)]
    pub(crate) context: Option<String>,
    /// Leave the current context as it is
    #[arg(long)]
    pub(crate) keep_current: bool,
    /// Print the kubeconfig instead of writing it
    #[arg(long)]
    pub(crate) print: bool,
    /// The tag of proxies
    #[arg(long, default_value = "tag:k8s-operator", value_name = "TAG")]
    pub(crate) proxy_tag: String,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    /// Socket of Tailscale's client, which is asked where no node of ours answers
    #[arg(long, env = "TS_SOCKET", default_value = "/var/run/tailscale/tailscaled.sock")]
    pub(crate) tailscaled_socket: PathBuf,
}

/// Without a command: joins the tailnet as `tailwharf node` does, and takes recordings on port 80 of the device.
#[derive(Debug, clap::Args)]
pub(crate) struct RecorderArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RecorderCommand>,
    /// Folder of the recordings
    #[arg(
        long,
        env = "TSRECORDER_DST",
        default_value = "/data/recordings",
        global = true
    )]
    pub(crate) folder: PathBuf,
    /// Longest recording, in MiB
    #[arg(long, env = "TAILWHARF_RECORDER_MAX_SIZE", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_size: u64,
    /// File with the key by which complete recordings are sealed; it is made if it is not there. Without one nothing is sealed
    #[arg(long, env = "TAILWHARF_RECORDER_SEAL_KEY", value_name = "FILE")]
    pub(crate) seal_key: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RecorderCommand {
    /// List recordings
    Ls,
    /// Compare recordings with their seals; fails if one is not whole
    Verify {
        /// Their names; all, if none is given
        recordings: Vec<String>,
        /// The key of seals, as the recorder tells it when it starts
        #[arg(long)]
        key: PublicKey,
    },
    /// Play a recording in this terminal
    Play {
        /// Its name, as `ls` tells it
        recording: String,
        /// How many times faster; 0 without any pause
        #[arg(long, default_value_t = 1.0)]
        speed: f64,
        /// Longest pause, in seconds
        #[arg(long, default_value_t = 3)]
        longest_pause: u64,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct NameserverArgs {
    /// Where to answer, over UDP and TCP
    #[arg(long, env = "NAMESERVER_LISTEN", default_value = "[::]:1053")]
    pub(crate) listen: SocketAddr,
    /// File of records that the operator writes
    #[arg(long, env = "NAMESERVER_RECORDS", default_value = "/config/records.json")]
    pub(crate) records: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = false, subcommand_negates_reqs = false)]
pub(crate) struct CoordinatorArgs {
    /// Configuration file (TOML)
    #[arg(long, env = "TAILWHARF_COORDINATOR_CONFIG")]
    pub(crate) config: PathBuf,
    /// Administer the running coordinator; without one of these, run it
    #[command(subcommand)]
    pub(crate) command: Option<AdminCommand>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// Control server to join; that of the state file, or else of Tailscale's service, if not given
    #[arg(long, env = "TS_LOGIN_SERVER", value_parser = server)]
    pub(crate) login_server: Option<Url>,
    /// Auth key; better given by the environment, where other users of this machine do not see it
    #[arg(long, env = "TS_AUTHKEY", hide_env_values = true)]
    pub(crate) auth_key: Option<String>,
    /// Name of the device; that of the machine if not given
    #[arg(long, env = "TS_HOSTNAME")]
    pub(crate) hostname: Option<String>,
    /// Tags to ask for
    #[arg(long, value_delimiter = ',')]
    pub(crate) tags: Vec<String>,
    /// Let the tailnet forget the device some time after it went away
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// Sign in anew with a new key, although the old one is still good; the device stays the same
    #[arg(long)]
    pub(crate) force_reauth: bool,
    /// File that keeps the keys of the device, as that of tailscaled, which may have written it; without one it is a new device at each start
    #[arg(long, env = "TS_STATE")]
    pub(crate) state: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust beside those of the system
    #[arg(long, alias = "control-ca")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Serve a SOCKS5 proxy into the tailnet here
    #[arg(long, env = "TS_SOCKS5_SERVER", value_name = "ADDRESS")]
    pub(crate) socks5: Option<SocketAddr>,
    /// Serve an HTTP proxy into the tailnet here
    #[arg(long, env = "TS_OUTBOUND_HTTP_PROXY_LISTEN", value_name = "ADDRESS")]
    pub(crate) http_proxy: Option<SocketAddr>,
    /// Answer DNS queries here: names of the tailnet, and others as the tailnet says
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Option<SocketAddr>,
    /// Lead a local port into the tailnet: ADDRESS=HOST:PORT
    #[arg(long = "forward", value_name = "ADDRESS=HOST:PORT")]
    pub(crate) forwards: Vec<Forward>,
    /// Lead a port of the device, TCP and UDP, to a local service: PORT=HOST:PORT
    #[arg(long = "serve", value_name = "PORT=HOST:PORT")]
    pub(crate) serves: Vec<Serve>,
    /// Make a network interface, through which all programs of this machine reach the tailnet; needs the capability NET_ADMIN
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "tailwharf0")]
    pub(crate) tun: Option<String>,
    #[command(flatten)]
    pub(crate) system: SystemArgs,
    /// Be an app connector: resolve the domains that the tailnet says for peers, and route the addresses that are found
    #[arg(long)]
    pub(crate) advertise_connector: bool,
    #[command(flatten)]
    pub(crate) offloads: OffloadArgs,
    /// Look for no direct paths to peers: all packets go through relays
    #[arg(long, env = "TAILWHARF_RELAY_ONLY")]
    pub(crate) relay_only: bool,
    /// UDP port of direct paths; by default one that stays the same as long as the state is kept
    #[arg(long, env = "TAILWHARF_UDP_PORT")]
    pub(crate) port: Option<u16>,
    /// Address outside by which peers reach that port, such as a port of a firewall that leads here
    #[arg(long = "endpoint", value_name = "ADDRESS:PORT")]
    pub(crate) endpoints: Vec<SocketAddr>,
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    /// Log the device out at the end
    #[arg(long)]
    pub(crate) logout_on_exit: bool,
}

/// How a machine takes part in the tailnet. The names are those of Tailscale's client.
#[derive(Debug, clap::Args)]
pub(crate) struct SystemArgs {
    /// Use the subnets that peers route
    #[arg(long)]
    pub(crate) accept_routes: bool,
    /// Resolve names as the tailnet says
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) accept_dns: bool,
    /// Send everything that is not of the tailnet through this peer: its name or address
    #[arg(long, value_name = "PEER")]
    pub(crate) exit_node: Option<String>,
    /// Reach the networks around this machine directly even so
    #[arg(long, requires = "exit_node", requires = "tun")]
    pub(crate) exit_node_allow_lan_access: bool,
    /// Route these subnets for peers, with commas between several
    #[arg(long, value_delimiter = ',', value_name = "PREFIXES")]
    pub(crate) advertise_routes: Vec<IpNet>,
    /// Be an exit node for peers, and resolve names for them
    #[arg(long)]
    pub(crate) advertise_exit_node: bool,
    /// Give packets for the subnets the address of this machine as their source
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) snat_subnet_routes: bool,
}

impl SystemArgs {
    pub(crate) fn settings(self) -> TunSettings {
        TunSettings {
            accept_routes: self.accept_routes,
            accept_dns: self.accept_dns,
            exit_node: self.exit_node,
            exit_node_allow_lan: self.exit_node_allow_lan_access,
            advertise_routes: self.advertise_routes,
            advertise_exit_node: self.advertise_exit_node,
            snat_subnet_routes: self.snat_subnet_routes,
        }
    }
}

/// What the kernel does for whole batches of packets.
#[derive(Debug, clap::Args)]
pub(crate) struct OffloadArgs {
    /// Do without these offloads of the kernel: udp_gso, udp_gro, tun_tso, tun_uso or all, with commas between several
    #[arg(long, env = "TAILWHARF_NO_OFFLOAD", value_name = "NAMES", default_value = "", hide_default_value = true, value_parser = OffloadSwitches::without)]
    pub(crate) no_offload: OffloadSwitches,
}

pub(crate) fn server(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        Ok(_) | Err(_) => {
            Err("expected the address of a server, such as https://control.example.com".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_server_is_an_address_with_scheme_and_host() {
        assert!(server("http://192.0.2.1:8080").is_ok());
        for text in ["control.example.com", "ftp://control.example.com", "https://", ""] {
            assert!(server(text).is_err(), "{text}");
        }
    }
}
