//! `tailwharf configure kubeconfig`: clusters, contexts and users in the kubeconfig of this user. Everything else in it stays.

mod tailnet;
mod target;

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use url::Url;

use self::tailnet::Known;
use self::target::Target;
use crate::args::KubeconfigArgs;
use crate::settings;

/// Largest kubeconfig that is read.
const MAX_LEN: u64 = 16 << 20;

/// Runs the command.
pub(crate) async fn configure(args: KubeconfigArgs) -> Result<ExitCode> {
    if args.list {
        return list(&args).await;
    }
    let targets = match &args.target {
        Some(target) => vec![resolve(&args, target.trim()).await?],
        None => {
            let (all, bad) = Known::ask(&args).await?.all(&args.proxy_tag, args.http);
            warn(&bad);
            if all.is_empty() {
                bail!(
                    "the tailnet publishes no cluster, and no peer has the tag {}",
                    args.proxy_tag
                );
            }
            all
        }
    };
    if args.print {
        let mut config = empty();
        for target in &targets {
            put_target(&mut config, target, args.context.as_deref(), false)?;
        }
        return say(&serde_saphyr::to_string(&config)?);
    }
    let path = settings::kubeconfig()?;
    let _lock = Lock::take(&path)?;
    let mut config = read(&path)?;
    let mut words = String::new();
    for target in &targets {
        if args.all && is_of_others(&config, target) {
            writeln!(
                words,
                "\"{name}\" left as it is: the kubeconfig has another cluster of this name; to replace it, run this command with {name}",
                name = target.name
            )?;
            continue;
        }
        let keep_current = args.keep_current || args.all;
        put_target(&mut config, target, args.context.as_deref(), keep_current)?;
        writeln!(
            words,
            "kubeconfig configured for \"{}\" at URL \"{}\"",
            target.name, target.server
        )?;
        if let Some(command) = target.command() {
            writeln!(words, "  kubectl will run there, as the tailnet says: {command}")?;
        }
    }
    write(&path, &serde_saphyr::to_string(&config)?)?;
    say(&words)
}

/// Prints the clusters that `--all` would write.
async fn list(args: &KubeconfigArgs) -> Result<ExitCode> {
    let (all, bad) = Known::ask(args).await?.all(&args.proxy_tag, args.http);
    warn(&bad);
    let width = all
        .iter()
        .map(|target| target.name.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for target in &all {
        let how = target
            .command()
            .map(|command| format!("  signs in by: {command}"));
        writeln!(
            text,
            "{:width$}  {}{}",
            target.name,
            target.server,
            how.unwrap_or_default()
        )?;
    }
    say(&text)
}

#[expect(clippy::print_stderr, reason = "standard output is for the kubeconfig")]
fn warn(words: &[String]) {
    for word in words {
        let word: String = word.chars().filter(|c| !c.is_control()).collect();
        eprintln!("warning: {word}");
    }
}

#[expect(clippy::print_stdout, reason = "this is what the command says")]
fn say(text: &str) -> Result<ExitCode> {
    print!("{text}");
    std::io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Finds out which cluster is meant.
async fn resolve(args: &KubeconfigArgs, target: &str) -> Result<Target> {
    if target.is_empty() {
        bail!("give the name of the proxy on the tailnet, such as tailscale-operator");
    }
    if target.starts_with("http://") || target.starts_with("https://") {
        let url = Url::parse(target).with_context(|| format!("{target:?} is not a URL"))?;
        let host = url
            .host_str()
            .with_context(|| format!("{target:?} has no host"))?;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        return Ok(Target::new(host, format!("{}://{host}{port}", url.scheme())));
    }
    let name = target.trim_end_matches('.');
    let known = match Known::ask(args).await {
        Ok(known) => known,
        // A full name needs nobody to look it up.
        Err(_) if name.contains('.') && name.parse::<std::net::IpAddr>().is_err() => {
            return Ok(Target::proxy(name, args.http));
        }
        Err(error) => {
            return Err(error.context(
                "a name is looked up at the node of this machine; start it, or give the full name or the URL",
            ));
        }
    };
    let (published, bad) = known.published();
    if let Some(found) = published.into_iter().find(|cluster| cluster.name == name) {
        return Ok(found);
    }
    warn(&bad);
    match known.device(name) {
        Some(fqdn) => Ok(Target::proxy(fqdn, args.http)),
        None => bail!("no peer found for \"{target}\""),
    }
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

/// Whether a kubeconfig has a cluster of this name that is another one.
fn is_of_others(config: &Value, target: &Target) -> bool {
    let clusters = config["clusters"].as_array().into_iter().flatten();
    let same = clusters.filter(|cluster| cluster["name"] == target.name.as_str());
    { same }.any(|cluster| cluster["cluster"]["server"] != target.server.as_str())
}

/// Puts the sections of a cluster into a kubeconfig; those of the same name are replaced.
fn put_target(config: &mut Value, target: &Target, context: Option<&str>, keep_current: bool) -> Result<()> {
    let fields = config.as_object_mut().context("a kubeconfig is a mapping")?;
    let name = context.unwrap_or(&target.name);
    let [cluster, user, section] = target.sections();
    put(fields, "clusters", &target.name, "cluster", &cluster)?;
    put(fields, "users", target.user_name(), "user", &user)?;
    put(fields, "contexts", name, "context", &section)?;
    let current = fields
        .get("current-context")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if current.is_empty() || !keep_current {
        fields.insert("current-context".to_owned(), name.into());
    }
    Ok(())
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

    const PROXY: &str = "tailscale-operator.tail1234.ts.net";

    fn with(mut config: Value, target: &Target, context: Option<&str>, keep_current: bool) -> Value {
        put_target(&mut config, target, context, keep_current).unwrap();
        config
    }

    #[test]
    fn everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config");
        let proxy = Target::proxy(PROXY, false);
        let first = with(read(&path).unwrap(), &proxy, Some("dev"), false);
        {
            let _lock = Lock::take(&path).unwrap();
            assert!(Lock::take(&path).is_err(), "one at a time");
            write(&path, &serde_saphyr::to_string(&first).unwrap()).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap() + "preferences: {colors: true}\n";
        fs::write(&path, text).unwrap();
        let other = Target::new("b", "http://b:8080".to_owned());
        let second = with(read(&path).unwrap(), &other, None, true);
        assert_eq!(second["current-context"], "dev");
        assert_eq!(second["preferences"]["colors"], true);
        assert_eq!(second["clusters"][0]["cluster"]["server"], proxy.server);
        assert_eq!(second["clusters"][1]["cluster"]["server"], "http://b:8080");
        assert_eq!(
            second["users"],
            json!([{"name": "tailscale-auth", "user": {"token": "unused"}}])
        );
        assert_eq!(
            second["contexts"][1],
            json!({"name": "b", "context": {"cluster": "b", "user": "tailscale-auth"}})
        );
        assert!(!is_of_others(&second, &other));
        let third = with(second, &other, None, false);
        assert_eq!(
            third["clusters"].as_array().unwrap().len(),
            2,
            "an entry of the same name is replaced"
        );
        assert_eq!(third["current-context"], "b");
    }

    #[test]
    fn a_published_cluster_brings_its_user_section() {
        let definition = json!({
            "name": "edge", "server": "https://edge.tail1234.ts.net", "namespace": "shop", "certificateAuthorityData": "LS0t",
            "user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "kubelogin", "args": ["get-token"]}},
        });
        let target = Target::defined(serde_json::from_value(definition.clone()).unwrap());
        assert_eq!(target.command().as_deref(), Some("kubelogin get-token"));
        let config = with(empty(), &target, None, false);
        assert_eq!(
            config["clusters"][0]["cluster"],
            json!({"server": "https://edge.tail1234.ts.net", "certificate-authority-data": "LS0t"})
        );
        assert_eq!(
            config["users"],
            json!([{"name": "edge", "user": definition["user"]}])
        );
        assert_eq!(
            config["contexts"][0]["context"],
            json!({"cluster": "edge", "user": "edge", "namespace": "shop"})
        );
        let mine = Target::new("edge", "https://192.0.2.1".to_owned());
        assert!(
            is_of_others(&config, &mine),
            "a cluster of one's own that has the name"
        );
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
