//! `tailwharf configure kubeconfig`: a cluster, a context and a user in the kubeconfig of this user. Everything else in it stays.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use tailwharf_node::local::ask_status;
use url::Url;

use crate::args::KubeconfigArgs;
use crate::settings;

/// The user section: kubectl would ask for a name and a password without one. It is that of Tailscale's client.
const USER: &str = "tailscale-auth";
/// Largest kubeconfig that is read.
const MAX_LEN: u64 = 16 << 20;

/// A cluster as kubectl reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    /// Name of the cluster.
    name: String,
    /// URL of its API.
    server: String,
}

/// Runs the command.
pub(crate) async fn configure(args: KubeconfigArgs) -> Result<ExitCode> {
    let target = resolve(&args).await?;
    let context = args.context.clone().unwrap_or_else(|| target.name.clone());
    let path = settings::kubeconfig()?;
    if args.print {
        let config = merge(empty(), &target, &context, false)?;
        return say(&serde_saphyr::to_string(&config)?);
    }
    let _lock = Lock::take(&path)?;
    let config = merge(read(&path)?, &target, &context, args.keep_current)?;
    write(&path, &serde_saphyr::to_string(&config)?)?;
    say(&format!(
        "kubeconfig configured for \"{}\" at URL \"{}\"\n",
        target.name, target.server
    ))
}

#[expect(clippy::print_stdout, reason = "this is what the command says")]
fn say(text: &str) -> Result<ExitCode> {
    print!("{text}");
    std::io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Finds out the full name of the proxy.
async fn resolve(args: &KubeconfigArgs) -> Result<Target> {
    let target = args.target.trim();
    if target.is_empty() {
        bail!("give the name of the proxy on the tailnet, such as tailscale-operator");
    }
    if target.starts_with("http://") || target.starts_with("https://") {
        let url = Url::parse(target).with_context(|| format!("{target:?} is not a URL"))?;
        let host = url
            .host_str()
            .with_context(|| format!("{target:?} has no host"))?;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        return Ok(Target {
            name: host.to_owned(),
            server: format!("{}://{host}{port}", url.scheme()),
        });
    }
    let name = match find(args, target).await {
        Ok(Some(name)) => name,
        Ok(None) => bail!("no peer found for \"{target}\""),
        // A full name needs nobody to look it up.
        Err(_) if target.trim_end_matches('.').contains('.') && target.parse::<std::net::IpAddr>().is_err() => {
            target.trim_end_matches('.').to_owned()
        }
        Err(error) => return Err(error).context("the short name of a proxy is looked up at the node of this machine; give the full name, or the URL"),
    };
    let scheme = if args.http { "http" } else { "https" };
    Ok(Target {
        server: format!("{scheme}://{name}"),
        name,
    })
}

/// The full name of a peer, as the node of this machine knows it.
async fn find(args: &KubeconfigArgs, target: &str) -> Result<Option<String>> {
    let report = ask_status(&settings::socket(args.socket.socket.as_deref())).await?;
    let wanted = target.trim_end_matches('.');
    let address = wanted.parse().ok();
    let peers = report.peers.into_iter().map(|peer| (peer.fqdn, peer.addresses));
    let own = report.fqdn.map(|fqdn| (fqdn, report.addresses));
    let matches = |(fqdn, addresses): &(String, Vec<std::net::IpAddr>)| {
        let short = fqdn.split('.').next().unwrap_or_default();
        short.eq_ignore_ascii_case(wanted)
            || fqdn.eq_ignore_ascii_case(wanted)
            || address.is_some_and(|address| addresses.contains(&address))
    };
    Ok(peers.chain(own).find(matches).map(|(fqdn, _)| fqdn))
}

fn empty() -> Value {
    json!({"apiVersion": "v1", "kind": "Config"})
}

fn read(path: &Path) -> Result<Value> {
    let text = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(empty()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        Ok(found) if found.len() > MAX_LEN => bail!("{} is too large for a kubeconfig", path.display()),
        Ok(_) => fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?,
    };
    if text.trim().is_empty() {
        return Ok(empty());
    }
    let config: Value =
        serde_saphyr::from_str(&text).with_context(|| format!("invalid kubeconfig {}", path.display()))?;
    if config["apiVersion"] != "v1" || config["kind"] != "Config" {
        bail!(
            "invalid kubeconfig {}: it is not a Config of version v1",
            path.display()
        );
    }
    Ok(config)
}

/// Puts the sections of a cluster into a kubeconfig; those of the same name are replaced.
fn merge(mut config: Value, target: &Target, context: &str, keep_current: bool) -> Result<Value> {
    let fields = config.as_object_mut().context("a kubeconfig is a mapping")?;
    put(
        fields,
        "clusters",
        &target.name,
        "cluster",
        &json!({"server": target.server}),
    )?;
    put(fields, "users", USER, "user", &json!({"token": "unused"}))?;
    put(
        fields,
        "contexts",
        context,
        "context",
        &json!({"cluster": target.name, "user": USER}),
    )?;
    let current = fields
        .get("current-context")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if current.is_empty() || !keep_current {
        fields.insert("current-context".to_owned(), context.into());
    }
    Ok(config)
}

fn put(fields: &mut Map<String, Value>, list: &str, name: &str, kind: &str, value: &Value) -> Result<()> {
    let entries = fields.entry(list).or_insert_with(|| json!([]));
    if entries.is_null() {
        *entries = json!([]);
    }
    let entries = entries
        .as_array_mut()
        .with_context(|| format!("{list} in the kubeconfig is no list"))?;
    let entry = json!({"name": name, kind: value});
    match entries.iter_mut().find(|entry| entry["name"] == name) {
        Some(old) => *old = entry,
        None => entries.push(entry),
    }
    Ok(())
}

/// Replaces the file in one step, so that nobody reads half of it. A link stays a link.
fn write(path: &Path, text: &str) -> Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let beside = with_end(&path, ".new");
    let writing = || format!("cannot write kubeconfig at {:?}", path.display().to_string());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .with_context(writing)?;
    file.write_all(text.as_bytes()).with_context(writing)?;
    file.sync_all().with_context(writing)?;
    if let Ok(old) = fs::metadata(&path) {
        file.set_permissions(old.permissions()).with_context(writing)?;
    }
    fs::rename(&beside, &path).with_context(writing)
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// The lock that kubectl takes, too: a file beside the kubeconfig.
struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let lock = with_end(path, ".lock");
        match OpenOptions::new().write(true).create_new(true).open(&lock) {
            Ok(_) => Ok(Self(lock)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "another program writes {}; if none does, remove {}",
                path.display(),
                lock.display()
            ),
            Err(error) => Err(error)
                .with_context(|| format!("cannot write kubeconfig at {:?}", path.display().to_string())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If it stays, the next run names it.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            name: "tailscale-operator.tail1234.ts.net".to_owned(),
            server: "https://tailscale-operator.tail1234.ts.net".to_owned(),
        }
    }

    #[test]
    fn everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config");
        let first = merge(read(&path).unwrap(), &target(), "dev", false).unwrap();
        {
            let _lock = Lock::take(&path).unwrap();
            assert!(Lock::take(&path).is_err(), "one at a time");
            write(&path, &serde_saphyr::to_string(&first).unwrap()).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap() + "preferences: {colors: true}\n";
        fs::write(&path, text).unwrap();
        let other = Target {
            name: "b".to_owned(),
            server: "http://b:8080".to_owned(),
        };
        let second = merge(read(&path).unwrap(), &other, "b", true).unwrap();
        assert_eq!(second["current-context"], "dev");
        assert_eq!(second["preferences"]["colors"], true);
        assert_eq!(second["clusters"][0]["cluster"]["server"], target().server);
        assert_eq!(second["clusters"][1]["cluster"]["server"], "http://b:8080");
        assert_eq!(second["users"].as_array().unwrap().len(), 1);
        assert_eq!(
            second["contexts"][1],
            json!({"name": "b", "context": {"cluster": "b", "user": USER}})
        );
        let third = merge(second, &other, "b", false).unwrap();
        assert_eq!(
            third["clusters"].as_array().unwrap().len(),
            2,
            "an entry of the same name is replaced"
        );
        assert_eq!(third["current-context"], "b");
    }

    #[test]
    fn what_is_no_kubeconfig_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        for text in ["kind: Pod\napiVersion: v1\n", "[1]\n", ": : :\n"] {
            fs::write(&path, text).unwrap();
            assert!(read(&path).is_err(), "{text}");
        }
    }
}
