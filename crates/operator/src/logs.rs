//! `tailwharf logs`: what the pod that hosts a device logs of it, wherever the device moves.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, LogParams};
use tailwharf_kube_types::{Identity, Parent};
use tokio::time::sleep;

use crate::explain::{Reader, Target};

/// How often is looked where the device is, and how soon a pod is asked again that did not answer.
const LOOK: Duration = Duration::from_secs(1);
/// A new host has had the device for a moment when that is noticed.
const MOVED: SignedDuration = SignedDuration::from_secs(5);
/// The container of a pool's pods.
const CONTAINER: &str = "proxy";

/// Which lines to print.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Go on with what comes, until the device is gone.
    pub follow: bool,
    /// Only what is younger than this.
    pub since: Option<Duration>,
}

/// Prints the lines of a device's host that are about the device of an object. Without a namespace it is that of the kubeconfig's context.
///
/// # Errors
/// When there is no cluster, no device, or the caller may not read the logs.
pub async fn logs(
    target: &Target,
    namespace: Option<&str>,
    operator_namespace: &str,
    options: Options,
    out: &mut (impl Write + Send),
) -> Result<()> {
    match print(target, namespace, operator_namespace, options, out).await {
        // Whoever read has seen enough.
        Err(error)
            if error
                .downcast_ref::<TailError>()
                .is_some_and(TailError::is_reader_gone) =>
        {
            Ok(())
        }
        printed => printed,
    }
}

async fn print(
    target: &Target,
    namespace: Option<&str>,
    operator_namespace: &str,
    options: Options,
    out: &mut (impl Write + Send),
) -> Result<()> {
    let reader = Reader::connect(namespace, operator_namespace).await?;
    let parent = target.parent(&reader.namespace);
    let Some(identity) = reader.identity(&parent).await? else {
        bail!(
            "{target} in namespace {} has no device; see `tailwharf explain {target}`",
            reader.namespace
        );
    };
    let mut tail = Tail {
        pods: Api::namespaced(reader.client.clone(), &reader.operator_namespace),
        news: News {
            mention: Mention::of(&identity.name_any()),
            after: options.since.map(|since| Timestamp::now() - since),
        },
    };
    let mut host = host_of(&identity);
    if !options.follow {
        let Some(pod) = host else {
            bail!("no pod hosts {target}; see `tailwharf explain {target}`");
        };
        return tail.read(&pod, false, out).await.map_err(|error| error.of(&pod));
    }
    loop {
        tokio::select! {
            read = tail.follow(host.as_deref(), out) => read?,
            moved = moved(&reader, &parent, host.as_deref()) => match moved? {
                Place::Gone => return Ok(()),
                Place::Host(new) => {
                    host = new;
                    tail.news.after = Some(Timestamp::now() - MOVED);
                }
            },
        }
    }
}

/// Where a device is.
enum Place {
    Host(Option<String>),
    /// It is no more.
    Gone,
}

fn host_of(identity: &Identity) -> Option<String> {
    identity.status.as_ref()?.host.clone()
}

/// Waits until a device is somewhere else than at `host`.
async fn moved(reader: &Reader, parent: &Parent, host: Option<&str>) -> Result<Place> {
    loop {
        sleep(LOOK).await;
        let Some(identity) = reader.identity(parent).await? else {
            return Ok(Place::Gone);
        };
        let now = host_of(&identity);
        if now.as_deref() != host {
            return Ok(Place::Host(now));
        }
    }
}

/// Reading a log came to an end that it should not.
#[derive(Debug, thiserror::Error)]
enum TailError {
    /// The API server did not give the log.
    #[error("its log cannot be read")]
    Log(#[source] kube::Error),
    /// The log broke off.
    #[error("its log broke off")]
    Broken(#[source] std::io::Error),
    /// Nobody takes the lines.
    #[error("the lines cannot be written")]
    Write(#[source] std::io::Error),
}

impl TailError {
    fn of(self, pod: &str) -> anyhow::Error {
        anyhow::Error::new(self).context(format!("pod {pod}"))
    }

    fn is_reader_gone(&self) -> bool {
        matches!(self, Self::Write(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// Whether asking again may help: the pod starts, or starts anew, or the connection was cut.
    fn passes(&self) -> bool {
        match self {
            Self::Log(kube::Error::Api(status)) => matches!(status.code, 400 | 404 | 500..),
            Self::Log(_) | Self::Broken(_) => true,
            Self::Write(_) => false,
        }
    }
}

/// The lines about one identity in the logs of pods.
struct Tail {
    pods: Api<Pod>,
    news: News,
}

impl Tail {
    /// Prints what a pod logs for as long as it does, and pauses.
    async fn follow(&mut self, pod: Option<&str>, out: &mut (impl Write + Send)) -> Result<()> {
        let Some(pod) = pod else {
            return std::future::pending().await;
        };
        match self.read(pod, true, out).await {
            Err(error) if !error.passes() => return Err(error.of(pod)),
            Ok(()) | Err(_) => {}
        }
        sleep(LOOK).await;
        Ok(())
    }

    async fn read(
        &mut self,
        pod: &str,
        follow: bool,
        out: &mut (impl Write + Send),
    ) -> Result<(), TailError> {
        let params = LogParams {
            container: Some(CONTAINER.to_owned()),
            follow,
            since_time: self.news.after,
            timestamps: true,
            ..LogParams::default()
        };
        let stream = self.pods.log_stream(pod, &params).await.map_err(TailError::Log)?;
        let mut lines = stream.lines();
        while let Some(line) = lines.try_next().await.map_err(TailError::Broken)? {
            if let Some(text) = self.news.of(&line) {
                writeln!(out, "{text}")
                    .and_then(|()| out.flush())
                    .map_err(TailError::Write)?;
            }
        }
        Ok(())
    }
}

/// Which lines are printed.
struct News {
    mention: Mention,
    /// Only later lines.
    after: Option<Timestamp>,
}

impl News {
    /// The text of a line, without the time that the kubelet puts before it, if it is about the identity and was not read before.
    fn of<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let (time, text) = line.split_once(' ')?;
        let time: Timestamp = time.parse().ok()?;
        // `since` is good to a second only.
        if self.after.is_some_and(|after| time <= after) {
            return None;
        }
        self.after = Some(time);
        self.mention.is_in(text).then_some(text)
    }
}

/// How lines name an identity: as a field, of their own or of their span.
struct Mention([String; 2]);

impl Mention {
    fn of(identity: &str) -> Self {
        Self([
            format!("identity={identity}"),
            format!("\"identity\":\"{identity}\""),
        ])
    }

    fn is_in(&self, line: &str) -> bool {
        let Self([text, json]) = self;
        // Another name may begin like this one.
        let ends =
            |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        line.contains(json.as_str())
            || line
                .match_indices(text.as_str())
                .any(|(at, _)| ends(&line[at + text.len()..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart_by_the_whole_name() {
        let mention = Mention::of("ts-nginx-abcde");
        for line in [
            "2026-12-01T12:00:00Z  INFO device{identity=ts-nginx-abcde}: tailwharf_proxy::hosting: the node is started",
            "2026-12-01T12:00:00Z  INFO access: request identity=ts-nginx-abcde from=100.64.0.1",
            "INFO tailwharf_proxy::pool: this pod hosts the identity identity=ts-nginx-abcde",
            r#"{"level":"INFO","message":"request","identity":"ts-nginx-abcde"}"#,
            r#"{"level":"INFO","message":"m","span":{"identity":"ts-nginx-abcde","name":"device"}}"#,
        ] {
            assert!(mention.is_in(line), "{line}");
        }
        for line in [
            "INFO access: request identity=ts-nginx-abcde2",
            "INFO access: request identity=ts-nginx-abcde-0",
            "INFO access: request identity=ts-nginx",
            r#"{"identity":"ts-nginx-abcde2"}"#,
            "INFO tailwharf_proxy: the pool member is started",
        ] {
            assert!(!mention.is_in(line), "{line}");
        }
    }

    #[test]
    fn a_line_is_printed_once_and_without_the_kubelets_time() {
        let mut news = News {
            mention: Mention::of("ts-nginx-abcde"),
            after: Some("2026-12-01T12:00:00.5Z".parse().unwrap()),
        };
        let line = |time: &str| format!("{time} INFO m identity=ts-nginx-abcde");
        assert_eq!(news.of(&line("2026-12-01T12:00:00.500000000Z")), None);
        let text = Some("INFO m identity=ts-nginx-abcde");
        assert_eq!(news.of(&line("2026-12-01T12:00:00.500000001Z")), text);
        assert_eq!(news.of(&line("2026-12-01T12:00:00.500000001Z")), None);
        assert_eq!(news.of("2026-12-01T12:00:01Z INFO of another"), None);
        assert_eq!(news.of(&line("2026-12-01T12:00:01.2Z")), text);
        assert_eq!(news.of("no time"), None);
    }
}
